"""Score answers from Z-tokens against answers from the raw text, on questions of your own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ztok_rag import ZCompressor
from ztok_rag.evaluation import format_table
from ztok_rag.evaluation.checkpoint import EvalSettings, evaluate_checkpoint
from ztok_rag.evaluation.datasets import read_datasets

PASSAGE = (
    "The lighthouse on Brannock Point was built in 1871 by Ada Merrow. Its lamp burned whale oil "
    "until 1902, when the harbour board paid for an electric arc."
)
QUESTIONS = {
    "In what year was the lighthouse built?": "1871",
    "What did its lamp burn?": "whale oil",
    "Who paid for the electric arc?": "the harbour board",
}

with tempfile.TemporaryDirectory() as folder:
    data = Path(folder) / "questions.jsonl"
    records = (
        {"context": PASSAGE, "question": question, "answers": [answer]}
        for question, answer in QUESTIONS.items()
    )
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    rows, note = evaluate_checkpoint(
        ZCompressor.from_pretrained(),
        read_datasets([data], ("qa",)),
        Path(folder) / "scores",
        EvalSettings(rates=(2.0, 4.0), arms=("none", "text-reader", "ztok")),
        checkpoint="default",
    )
print(format_table(rows))
print(note)
