"""Reports: self-contained HTML pages, no script and nothing fetched. matplotlib and Pillow are imported when used.

`page` is the shared skeleton, `plots` the shared look of every plot; `robustness` and `drill` each write one page.
"""

from redoubt.report.drill import drill_picture, drill_report
from redoubt.report.robustness import robustness_report

__all__ = ["drill_picture", "drill_report", "robustness_report"]
