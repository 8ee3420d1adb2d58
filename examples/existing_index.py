"""Add compression to an index that is there already: compress once, then query as before."""

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode

from ztok_rag import ZTokenLLM, ZTokenPostprocessor, ZTokenTransform, default_embedding

documents = [
    Document(text="The lighthouse on Brannock Point was built in 1871 by Ada Merrow."),
    Document(text="The bakery in Tolvan Street opens at five in the morning."),
]
index = VectorStoreIndex.from_documents(documents, embed_model=default_embedding())

# Every node of the index, once; new documents get the transform in their own pipeline.
nodes = list(index.docstore.docs.values())
IngestionPipeline(transformations=[ZTokenTransform()], disable_cache=True).run(nodes=nodes)

postprocessor = ZTokenPostprocessor(rate=2)
engine = index.as_query_engine(
    llm=ZTokenLLM(), node_postprocessors=[postprocessor], similarity_top_k=1
)
response = engine.query("In what year was the lighthouse built?")
print(response)
print("read from:", response.source_nodes[0].node.get_content(MetadataMode.NONE))
print(f"compressed for this query: {postprocessor.stats.compressed} chunks")
