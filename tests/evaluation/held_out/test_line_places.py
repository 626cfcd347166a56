"""Places are the same for the same seed, lie after words, and put together give the file."""

from moe_codegen.evaluation.held_out.line_places import LEAST, choose_places
from moe_codegen.metrics import Document
from tests.evaluation.repositories import FILES

DOCUMENTS = [Document(name, name.split("/")[0], "python", text) for name, text in FILES.items()]


def test_a_place_is_a_cut_after_a_word_of_a_line_of_its_file():
    places = choose_places(DOCUMENTS, 3, 8000)
    assert {place.document.name for place in places} == set(FILES)
    for place in places:
        assert place.before + place.missing + place.after == place.document.text
        assert place.offset == len(place.before)
        assert place.before[-1].isalnum()
        assert not (place.missing[0] + "a").isidentifier()
        assert "\n" not in place.missing
        assert place.after.startswith("\n")
        assert len("".join(place.missing.split())) >= LEAST


def test_places_depend_on_the_seed_and_their_own_file_alone():
    all_of_them = choose_places(DOCUMENTS, 1, 8000, seed=3)
    assert choose_places(DOCUMENTS[2:3], 1, 8000, seed=3) == all_of_them[2:3]
    assert choose_places(DOCUMENTS, 1, 8000, seed=4) != all_of_them


def test_lines_beyond_the_limit_are_not_asked_for():
    text = "alpha = beta + gamma\n" * 50
    places = choose_places([Document("a", "r", "python", text)], 99, 100)
    assert len(places) == 4
    assert all(place.offset < 100 for place in places)
