"""Scoring: how well the reader answers from Z-tokens, and how well it reconstructs texts.

Metrics, files of questions, the arms that are compared, the log from which an interrupted
evaluation resumes, and the rows of results with their confidence intervals.
"""

from ztok_rag.evaluation.arms import ARM_NAMES, Arm, Shorten, make_arms
from ztok_rag.evaluation.intervals import bootstrap_ci
from ztok_rag.evaluation.log import PredictionLog, digest, weights_digest
from ztok_rag.evaluation.prompts import JOIN, chat_frame, cut_end, cut_middle
from ztok_rag.evaluation.questions import (
    QUESTION_FIELDS,
    Question,
    check_question,
    make_question,
    sample,
    split_template,
)
from ztok_rag.evaluation.rag_dataset import read_rag_dataset, write_rag_dataset
from ztok_rag.evaluation.results import machine_info, write_results
from ztok_rag.evaluation.rows import Row
from ztok_rag.evaluation.run import evaluate, reconstruct
from ztok_rag.evaluation.summary import (
    paired_difference,
    paired_differences,
    paired_share,
    summarize,
)
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
    "read_rag_dataset",
    "reconstruct",
    "sample",
    "split_template",
    "summarize",
    "weights_digest",
    "write_rag_dataset",
    "write_results",
]
