"""Our few kinds of panels, and dashboards made of rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, stat, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Queries = Sequence[tuple[str, str]]
"""Expressions with their legends."""
P = TypeVar("P", bound=Any)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RATIO, SECONDS, PER_SECOND, COUNT = "percentunit", "s", "cps", "short"
HEIGHT, SMALL = 8, 4


def lines(title: str, text: str, unit: str, *queries: tuple[str, str], stacked: bool = False, width: int = 8) -> Any:
    """Lines over time. `stacked`: as areas that add up."""
    panel = _described(timeseries.Panel(), title, text, unit, queries).height(HEIGHT).span(width).min(0)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    if unit == RATIO:
        panel.axis_soft_max(1)
    if stacked:
        panel.fill_opacity(30).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return panel


def number(title: str, text: str, unit: str, query: str, limits: Sequence[tuple[float | None, str]] = ()) -> Any:
    """One figure; `limits`: from which value on it has which colour, the first one from None."""
    panel = _described(stat.Panel(), title, text, unit, [(query, "")]).height(SMALL).span(4)
    panel.graph_mode(BigValueGraphMode.AREA).color_mode(BigValueColorMode.VALUE)
    steps = [Threshold(value=value, color=colour) for value, colour in limits or [(None, "blue")]]
    return panel.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))


def bars(title: str, text: str, unit: str, query: str, legend: str, width: int = 8) -> Any:
    """Bars of this moment, one per series."""
    panel = _described(bargauge.Panel(), title, text, unit, [(query, legend)], instant=True)
    return panel.height(HEIGHT).span(width).min(0).orientation(VizOrientation.HORIZONTAL)


def distribution(title: str, text: str, unit: str, histogram_rate: str, width: int = 8) -> Any:
    """A histogram over time; the query gives rates of its buckets by `le`."""
    panel = heatmap.Panel().title(title).description(text).datasource(SOURCE).height(HEIGHT).span(width)
    query = Dataquery().expr(histogram_rate).legend_format("{{le}}").format(PromQueryFormat.HEATMAP).range()
    return panel.with_target(query.ref_id("A")).unit(unit)


def board(uid: str, title: str, text: str, rows: Sequence[tuple[str, Sequence[Any]]]) -> Any:
    """A dashboard with variables for the data source, verifiers and drafters, and links to the others."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags(["specfleet"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            dashboard.DashboardLink("specfleet")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["specfleet"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_daemons("verifier"))
        .with_variable(_daemons("drafter"))
    )
    for name, panels in rows:
        made.with_row(dashboard.Row(name))
        for panel in panels:
            made.with_panel(panel)
    return made


def _daemons(kind: str) -> Any:
    return (
        dashboard.QueryVariable(kind)
        .label(f"{kind.capitalize()}s")
        .datasource(SOURCE)
        .query(f"label_values(specfleet_{kind}_build_info, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _described(panel: P, title: str, text: str, unit: str, queries: Queries, instant: bool = False) -> P:
    panel.title(title).description(text).datasource(SOURCE).unit(unit)
    for letter, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        query = Dataquery().expr(expression).legend_format(legend).ref_id(letter)
        panel.with_target(query.instant() if instant else query.range())
    return panel
