"""Reports: self-contained HTML pages, no script and nothing fetched. matplotlib and Pillow are imported when used.

`page` is the shared skeleton, `plots` the shared look of every plot; `robustness` (with `trust`), `compare` and `drill`
each write one page, and `facts` gives a report's figures to trackers.
"""

from redoubt.report.compare import comparison
from redoubt.report.drill import drill_picture, drill_report
from redoubt.report.robustness import report_figures, robustness_report

__all__ = ["comparison", "drill_picture", "drill_report", "report_figures", "robustness_report"]
