"""Chat over a folder of text files whose chunks the LLM reads as Z-tokens.

python examples/chat_over_folder.py my_documents/ "Who built it?" "And when?"
"""

from __future__ import annotations

import argparse

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex

from ztok_rag import ZTokenLLM, ZTokenPostprocessor, default_embedding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("questions", nargs="*", help="asked in turn; without any, type your own")
    parser.add_argument("--budget", type=int, default=200, help="context positions per answer")
    options = parser.parse_args()

    documents = SimpleDirectoryReader(options.folder, recursive=True).load_data()
    index = VectorStoreIndex.from_documents(documents, embed_model=default_embedding())
    engine = index.as_chat_engine(
        chat_mode="condense_plus_context",  # retrieves for "And when?" by the turn before it, too
        llm=ZTokenLLM(),
        # The budget is spent on pieces of the chunks that are likely to contain the answer.
        node_postprocessors=[ZTokenPostprocessor(token_budget=options.budget)],
        similarity_top_k=4,
    )
    questions = iter(options.questions or iter(lambda: input("? "), ""))
    for question in questions:
        print(f"> {question}")
        for piece in engine.stream_chat(question).response_gen:
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
