from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.loading.work_order import WorkOrder


@given(
    lanes=st.lists(st.integers(0, 99), min_size=1, unique=True), processes=st.integers(1, 12), rows=st.integers(1, 3)
)
def test_parts_are_all_of_it_in_order_and_as_large_as_each_other(lanes, processes, rows):
    saved = {lane: {"of": lane} for lane in lanes[::2]}
    order = WorkOrder.model_construct(lanes=tuple(lanes), rows_per_lane=rows, saved=saved, first_row=0)
    parts = order.parts(processes)
    assert [lane for part in parts for lane in part.lanes] == lanes
    assert {lane: state for part in parts for lane, state in part.saved.items()} == saved
    assert len(parts) == min(processes, len(lanes))
    assert max(len(part.lanes) for part in parts) - min(len(part.lanes) for part in parts) <= 1
    first_rows = [sum(part.assignment.rows for part in parts[:number]) for number in range(len(parts))]
    assert [part.first_row for part in parts] == first_rows
