"""The verbs of the command line: an unknown one is told which was meant, and --help is made readable."""

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from pcpo_ray.commands import unknown_options

MEANT = {
    "train": ("run", "start", "fit", "finetune", "fine-tune", "learn", "launch"),
    "init": ("new", "create", "copy", "cp"),
    "check": ("validate", "verify", "test", "doctor", "dry-run"),
    "config": ("configs", "keys", "explain", "schema"),
    "evaluate": ("eval", "score", "measure", "benchmark"),
    "sample": ("generate", "draw", "infer", "inference", "predict", "images"),
    "report": ("show", "view", "open", "plot", "html"),
    "list": ("ls", "runs", "ps"),
    "status": ("info", "state", "progress", "watch", "monitor"),
    "stop": ("kill", "cancel", "end", "terminate", "abort"),
    "plan": ("memory", "estimate", "fits"),
    "study": ("sweep", "compare", "ablate"),
}
"""Words that other programs have, by the verb that they mean here."""

MISSING = {
    "RUN": "pcpo-ray list shows which there are",
    "CONFIG": "a file, or a recipe's name such as shapes_pcpo; pcpo-ray recipes lists them",
    "NAME": "pcpo-ray recipes lists them",
    "STUDY": "such as studies/diffusion; pcpo-ray recipes lists them",
}
"""Hints for an argument that was left out, by what --help calls it."""

GIVEN = "pcpo_ray.given"
"""The key of a context's `meta` that holds the words of the command line."""

VERB_OF = {word: verb for verb, words in MEANT.items() for word in words}


class Verbs(TyperGroup):
    """The commands as a group: an unknown one is answered with the command that was meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first word names; its error names the cure."""
        if args and self.get_command(ctx, args[0]) is None and (cure := meant(args)):
            ctx.fail(f"No such command {args[0]!r}: {cure}")
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            message = str(getattr(error, "message", ""))
            if message.startswith("No such command") and "Did you mean" not in message:
                error.message = f"{message} pcpo-ray --help lists them."  # type: ignore[attr-defined]
            raise

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; they are kept for errors to quote."""
        ctx.meta[GIVEN] = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            _explain_option(error, ctx)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors of an argument that was left out and of an unknown option name the cure."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            _explain_option(error, ctx)
            left_out = type(error).__name__ == "MissingParameter"  # of click, which typer has a copy of
            hint = MISSING.get(getattr(getattr(error, "param", None), "metavar", None) or "") if left_out else None
            if hint is not None:
                error.message = hint  # type: ignore[attr-defined]
            raise


def _explain_option(error: Any, ctx: Any) -> None:
    """Put the cure into the error of an option that does not exist."""
    if type(error).__name__ == "NoSuchOption":  # of click, which typer has a copy of
        error.message = unknown_options.explained(error, ctx.meta[GIVEN])
        error.possibilities = []


def meant(words: list[str]) -> str:
    """Say what was meant by a command line whose verb does not exist; empty where nobody can know."""
    from pcpo_ray.config import recipes

    verb, rest = words[0], " ".join(words[1:])
    if verb in ("resume", "continue"):
        return "to go on with a run, give the command that started it, and --resume; pcpo-ray status RUN prints it"
    if verb in ("delete", "remove", "rm"):
        return f"a run is its folder; delete that: rm -r {rest or 'runs/RUN'}"
    if verb in VERB_OF:
        return f"did you mean pcpo-ray {VERB_OF[verb]} {rest}".rstrip() + "?"
    if verb in (*recipes.names(), *recipes.studies()) or Path(verb).suffix in (".yaml", ".yml"):
        asked = "study" if verb in recipes.studies() else "train"
        return f"the verb comes first: pcpo-ray {asked} {' '.join(words)}"
    return ""


def readable_help(command: Any, names: list[str]) -> None:
    """Have --help show no type for a flag, arguments in capitals, and each paragraph as wide as the terminal.

    `names` are those of the option that shows it.
    """
    if command.help:
        command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
    shown = command.get_help_option(typer.Context(command, help_option_names=names))
    for parameter in (*command.params, shown):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        elif parameter.metavar is None and parameter.param_type_name == "argument":
            parameter.metavar = parameter.name.upper()
        elif parameter.metavar is None and getattr(parameter, "min", None) is not None:
            parameter.metavar = "NUMBER"  # its range stands beside it
    for below in getattr(command, "commands", {}).values():
        readable_help(below, names)
