"""A folder of repositories with a few real-looking files in four languages."""

from pathlib import Path

FILES = {
    "alpha/stack.py": "class Stack:\n    def push(self, item):\n        self.items.append(item)\n        return self\n",
    "beta/add.py": "# add\ndef add(first, second):\n    total = first + second\n    return total\n",
    "alpha/Stack.java": 'class Stack {\n    int size = 0;\n    String name() { return "stack"; }\n}\n',
    "gamma/Broken.java": "class Broken {\n    int size( {\n",
    "beta/stack.js": "function push(items, item) {\n    items.push(item); // last\n    return items;\n}\n",
    "gamma/add.cpp": "#include <vector>\nint add(int first, int second) {\n    return first + second;\n}\n",
}


def write_repositories(folder: Path) -> Path:
    """Write `FILES` below `folder`, the first part of each path being the repository."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
