"""What every evaluation shares: arms and questions, running them, and results."""

from ztok_rag.evaluation.log import PredictionLog
from ztok_rag.evaluation.questions import (
    ARM_NAMES,
    Arm,
    Question,
    make_arms,
    read_jsonl,
    sample,
    split_template,
)
from ztok_rag.evaluation.results import (
    Row,
    bootstrap_ci,
    format_table,
    machine_info,
    paired_difference,
    stratified_ci,
    summarize,
    write_results,
)
from ztok_rag.evaluation.run import chat_frame, cut_middle, evaluate

__all__ = [
    "ARM_NAMES",
    "Arm",
    "PredictionLog",
    "Question",
    "Row",
    "bootstrap_ci",
    "chat_frame",
    "cut_middle",
    "evaluate",
    "format_table",
    "machine_info",
    "make_arms",
    "paired_difference",
    "read_jsonl",
    "sample",
    "split_template",
    "stratified_ci",
    "summarize",
    "write_results",
]
