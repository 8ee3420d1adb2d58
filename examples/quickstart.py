"""Ask a question of a few documents that the LLM reads as Z-tokens."""

from llama_index.core import Document, VectorStoreIndex

from ztok_rag import ZTokenLLM, ZTokenPostprocessor, default_embedding

documents = [
    Document(
        text="The lighthouse on Brannock Point was built in 1871 by Ada Merrow. Its lamp burned "
        "whale oil until 1902, when the harbour board paid for an electric arc. A storm broke the "
        "lantern room in 1911, and the keeper, Tobias Finch, rowed eleven miles for help."
    ),
    Document(
        text="The bakery in Tolvan Street opens at five in the morning. Its owner, Piet Larsen, "
        "bakes rye bread in a wood oven that his grandfather brought over the mountains."
    ),
]
index = VectorStoreIndex.from_documents(documents, embed_model=default_embedding())
engine = index.as_query_engine(
    llm=ZTokenLLM(), node_postprocessors=[ZTokenPostprocessor(rate=4)], similarity_top_k=1
)
print(engine.query("Who rowed for help?"))
