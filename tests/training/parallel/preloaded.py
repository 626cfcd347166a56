"""What every process of these tests needs, imported once in the server that they are forked from."""

import moe_codegen.training.parallel.trainer  # noqa: F401
import tests.training.parallel.interrupted
import tests.training.parallel.runs  # noqa: F401
