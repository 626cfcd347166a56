from moe_codegen.data.passes.tables import as_text, markdown, tables_of


def rows(manifest, head):
    """The rows of the table of that name."""
    return next(table.rows for table in tables_of(manifest) if table.head[0] == head)


def test_what_could_be_thousands_of_rows_is_the_most_and_the_sum_of_the_others():
    counts = {f"name{number:02d}": number for number in range(1, 1001)}  # in the order in which JSON keeps them
    for key, head in (("licenses", "licence"), ("problems_found", "problem found")):
        shown = rows({key: counts}, head)
        assert shown[0] == ("name1000", "1,000")
        assert shown[14] == ("name986", "986")
        assert shown[15] == ("985 others", f"{sum(range(986)):,}")
        assert len(shown) == 16
    assert rows({"licenses": {"B": 2, "A": 2}}, "licence") == [("A", "2"), ("B", "2")]


def test_that_no_problem_was_found_is_told():
    assert ("problems found", "0") in rows({"problems_found": {}}, "")


def test_cluster_sizes_are_in_order_and_together_up_to_a_power_of_two():
    sizes = {"1": 9, "10": 1, "16": 1, "17": 1, "2": 5, "3": 2, "4": 1, "1025": 1}  # as JSON sorts them
    assert rows({"cluster_sizes": sizes}, "files in the cluster") == [
        ("1", "9"),
        ("2", "5"),
        ("3 to 4", "3"),
        ("9 to 16", "2"),
        ("17 to 32", "1"),
        ("1,025 to 2,048", "1"),
    ]


def test_a_name_ends_neither_its_cell_nor_its_row():
    stage = {"verb": "inspect", "source": "in", "licenses": {"MIT | X11\nand more": 1}}
    assert r"| MIT \| X11 and more | 1 |" in list(markdown([stage]))


def test_a_setting_as_text():
    assert list(map(as_text, [True, False, 1000, 0.05, 5e4, "a"])) == ["yes", "no", "1,000", "0.05", "50,000", "a"]
    assert list(map(as_text, [None, "", [], {}])) == ["none"] * 4
    assert list(map(as_text, [["a", "b"], {"a": 1, "b": [2]}])) == ["a, b", "a 1, b 2"]
