"""Running the verbs of the conversion: in this process, or as a user does."""

import inspect
import json
import subprocess
import sys
from unittest import mock

from typer.main import get_command
from typer.testing import CliRunner

from moe_codegen.cli import app, console

RUN = "import sys; from moe_codegen.cli import main; sys.argv[0] = 'moe-codegen'; main()"


def run(*arguments):
    """The verb in this process; an error of ours passes through as the exception it is."""
    with mock.patch.object(console.output, "_width", 160):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments):
    result = run(*arguments, "--json")
    return json.loads(result.stdout), result


def run_apart(*arguments):
    """The verb in a process of its own, as from a shell."""
    return subprocess.run([sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True)


def parameters_of(verb):
    """Flag or argument name -> default, as the command line has them."""
    command = get_command(app).commands[verb]
    return {parameter.name: parameter.default for parameter in command.params}


def arguments_of(function):
    """Argument name -> default, as Python has them, without those that only a program can give."""
    return {
        name: None if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "progress"
    }
