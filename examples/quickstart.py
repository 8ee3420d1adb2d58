"""Ask a question of a few documents that the LLM reads as Z-tokens."""

from llama_index.core import Document, VectorStoreIndex

from ztok_rag import ZTokenLLM, ZTokenPostprocessor, default_embedding

documents = [
    Document(text="The lighthouse on Brannock Point was built in 1871 by Ada Merrow."),
    Document(text="The bakery in Tolvan Street opens at five in the morning."),
]
index = VectorStoreIndex.from_documents(documents, embed_model=default_embedding())
engine = index.as_query_engine(
    llm=ZTokenLLM(), node_postprocessors=[ZTokenPostprocessor(rate=4)], similarity_top_k=1
)
print(engine.query("Who built the lighthouse?"))
