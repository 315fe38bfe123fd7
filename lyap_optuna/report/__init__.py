"""What a study found, in words and numbers, and as one page that needs nothing else.

Above :mod:`lyap_optuna.visualization`, whose figures the page shows, and beside
:mod:`lyap_optuna.dashboard`, which it does not need: a report can be written where
optuna-dashboard is not installed, and read where nothing is.
"""

from lyap_optuna.report._comparison import compare_searches
from lyap_optuna.report._page import Section, Table, page
from lyap_optuna.report._report import report_page, write_report
from lyap_optuna.report._summary import StudySummary, summarize
from lyap_optuna.report._tables import skill_table

__all__ = [
    "Section",
    "StudySummary",
    "Table",
    "compare_searches",
    "page",
    "report_page",
    "skill_table",
    "summarize",
    "write_report",
]
