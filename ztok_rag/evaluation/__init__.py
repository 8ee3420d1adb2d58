"""What is read and answered is scored here.

Metrics, question files, who reads what (the arms), the log of answers that a stopped evaluation
resumes from, and the table of results with its intervals.
"""

from ztok_rag.evaluation.intervals import bootstrap_ci, ratio_ci, stratified_ci
from ztok_rag.evaluation.log import PredictionLog, digest, weights_digest
from ztok_rag.evaluation.prompts import JOIN, chat_frame, cut_end, cut_middle
from ztok_rag.evaluation.questions import (
    ARM_NAMES,
    QUESTION_FIELDS,
    Arm,
    Question,
    Shorten,
    check_field,
    check_question,
    make_arms,
    make_question,
    read_jsonl,
    sample,
    split_template,
)
from ztok_rag.evaluation.rag_dataset import read_rag_dataset, write_rag_dataset
from ztok_rag.evaluation.results import machine_info, write_results
from ztok_rag.evaluation.rows import (
    Row,
    paired_difference,
    paired_differences,
    paired_share,
    summarize,
)
from ztok_rag.evaluation.run import evaluate, reconstruct
from ztok_rag.evaluation.table import format_table

__all__ = [
    "ARM_NAMES",
    "JOIN",
    "QUESTION_FIELDS",
    "Arm",
    "PredictionLog",
    "Question",
    "Row",
    "Shorten",
    "bootstrap_ci",
    "chat_frame",
    "check_field",
    "check_question",
    "cut_end",
    "cut_middle",
    "digest",
    "evaluate",
    "format_table",
    "machine_info",
    "make_arms",
    "make_question",
    "paired_difference",
    "paired_differences",
    "paired_share",
    "ratio_ci",
    "read_jsonl",
    "read_rag_dataset",
    "reconstruct",
    "sample",
    "split_template",
    "stratified_ci",
    "summarize",
    "weights_digest",
    "write_rag_dataset",
    "write_results",
]
