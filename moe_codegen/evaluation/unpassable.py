"""Problems of MultiPL-E that no completion can pass, because of their own tests or prompt."""

UNPASSABLE: dict[tuple[str, str], dict[str, str]] = {  # (dataset, language) -> problem -> reason
    ("humaneval", "js"): {
        "HumanEval_51_remove_vowels": "a string of its tests holds a raw line break, so that nothing parses",
        "HumanEval_92_any_int": "its tests tell 3 from 3.0, which are one value in JavaScript",
    },
    ("humaneval", "java"): {
        "HumanEval_92_any_int": "its tests call with the same float twice and expect true, then false",
        "HumanEval_136_largest_smallest_integers": "its tests compare a Pair with an Optional of a Pair, never equal",
    },
    ("humaneval", "cpp"): {
        "HumanEval_92_any_int": "its tests call with the same float twice and expect true, then false",
        "HumanEval_137_compare_one": "its prompt declares a variable of type std::nullopt, which is a value",
    },
}
