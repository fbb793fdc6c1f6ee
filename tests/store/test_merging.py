import pytest

from qb_cluster.store.merging import MANY, MANY_AT_THE_END, parts_to_merge


def grow(commits, many=MANY):
    """Commit parts of so many rows, merging as they come; each row knows how often it moved."""
    parts, worst, moved = [], 0, 0
    for rows in commits:
        parts.append((rows, 0))
        while count := parts_to_merge([rows for rows, _ in parts], many):
            merged = parts[-count:]
            parts[-count:] = [(sum(n for n, _ in merged), 1 + max(moves for _, moves in merged))]
        worst = max(worst, len(parts))
        moved = max(moved, *(moves for _, moves in parts))
    return parts, worst, moved


@pytest.mark.parametrize("rows", [1, 3, 50, 2_000])
def test_parts_stay_few_and_no_row_moves_more_than_three_times(rows):
    parts, worst, moved = grow([rows] * (100_000 // rows))
    assert sum(n for n, _ in parts) == 100_000 // rows * rows
    assert worst < 160
    assert moved <= 3


def test_commits_of_all_sizes_are_merged_too():
    _, worst, moved = grow([1 + (number * 7_919) % 1_000 for number in range(2_000)])
    assert worst < 2 * MANY + 2_000 * 500 / 4_096
    assert moved <= 3


def test_few_parts_and_large_ones_are_left_alone():
    assert parts_to_merge([]) == 0
    assert parts_to_merge([1] * (MANY - 1)) == 0
    assert parts_to_merge([1] * MANY) == MANY
    assert parts_to_merge([5_000] * 1_000) == 0
    assert parts_to_merge([5_000] * 9 + [1] * MANY) == MANY
    assert parts_to_merge([1] * MANY_AT_THE_END, MANY_AT_THE_END) == MANY_AT_THE_END


def test_only_parts_that_follow_one_another_are_merged_so_that_they_stay_in_order():
    small_before_large = [1] * (MANY - 1) + [5_000] + [1] * (MANY - 1)
    assert parts_to_merge(small_before_large) == 0
