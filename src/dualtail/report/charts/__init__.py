"""The charts of the page."""

from dualtail.report.charts.accuracy import ablation_charts, differences_chart, groups_chart
from dualtail.report.charts.base import Chart
from dualtail.report.charts.imbalances import counts_chart, prior_charts
from dualtail.report.charts.reliability import reliability_charts

__all__ = [
    "Chart", "ablation_charts", "counts_chart", "differences_chart", "groups_chart", "prior_charts",
    "reliability_charts",
]  # fmt: skip
