"""Markdown tables: alignment, missing values, cells that hold the separator."""

from mixaq_mmdet.reporting.markdown import markdown_table


def test_columns_of_numbers_are_right_aligned_and_pipes_escaped():
    rows = [['a|b', 1.234, None, '1e-5'], ['c', 'not run', 3, '']]
    assert markdown_table(['name', 'AP', 'n', 'loss'], rows).splitlines() == [
        '| name | AP | n | loss |',
        '| --- | ---: | ---: | ---: |',
        '| a\\|b | 1.23 | - | 1e-5 |',
        '| c | not run | 3 |  |',
    ]
