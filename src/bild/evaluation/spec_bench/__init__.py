"""Spec-Bench (Xia et al. 2024, arXiv 2401.07851): 480 questions of six groups, put to a chat model by any policies.

questions = read_questions("question.jsonl")
summary = spec_bench(roster.methods, questions.questions, out="run")
"""

from bild.evaluation.spec_bench.figures import BenchFigures, BenchSummary
from bild.evaluation.spec_bench.questions import GROUPS, Question, Questions, read_questions
from bild.evaluation.spec_bench.run import spec_bench

__all__ = ["GROUPS", "BenchFigures", "BenchSummary", "Question", "Questions", "read_questions", "spec_bench"]
