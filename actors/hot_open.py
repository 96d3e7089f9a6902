"""An executor's cached tables, as its bundle and placement say."""

from __future__ import annotations

from actors.card_rows import CardTables
from actors.defaults import DefaultRows
from actors.hot_kept import OnCard
from actors.hot_rows import HotTables
from actors.hot_table import Group, HotTable
from actors.layouts import Layouts
from kernels.bundle.load import Bundle
from runtime.errors import StartError
from runtime.topology import DEFAULT, ModelSpec


def hot_tables(
    name: str,
    model: ModelSpec,
    bundle: Bundle,
    layouts: Layouts,
    kept: tuple[CardTables, int] | None = None,
) -> HotTables:
    """Return the cached tables of a bundle, in an executor.

    Args:
        name: The executor's.
        model: Names the shards.
        bundle: The model's.
        layouts: What these are asked.
        kept: The tables on the executor's card, and how many rows a fill may have; without it,
            rows are kept in the host's memory.

    Raises:
        StartError: A table's ``max_bytes`` have no room for any row.
        StoreError: A table is no longer what it was.
    """
    placement = layouts.placement
    cached = {each.table: each for each in placement.cached}
    defaults = DefaultRows(bundle, layouts)
    fetched = () if layouts.fetch is None else layouts.fetch.tables
    tables = [
        HotTable(
            number=number,
            table=each.table,
            max_bytes=cached[each.table.name].max_bytes,
            stale_s=cached[each.table.name].stale_s,
            group_of=placement.group_of(each.table.name),
            default_row=defaults.encoded(each) if model.missing == DEFAULT else None,
        )
        for number, each in enumerate(fetched)
        if each.table.name in cached
    ]
    card = None
    if kept is not None:
        of_card, most_rows = kept
        card = OnCard(of_card, [table.stale_s for table in tables], most_rows)
    numbers = {int(group) for table in tables for group in table.group_of}
    groups = {group: Group(model.replicas_of(group), *layouts.shards[group]) for group in numbers}
    try:
        return HotTables(
            name=name,
            model=model.name,
            version=bundle.manifest.version,
            n_tables=len(fetched),
            tables=tables,
            groups=groups,
            card=card,
        )
    except ValueError as error:
        raise StartError(f"model {model.name}: {error}") from error
