"""What one sees while a run goes on: one bar on a terminal, ten lines elsewhere, and a warning where routing fails."""

from collections.abc import Callable
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(TrainerCallback):
    """Steps, loss, tokens per second, the experts' load and the remaining time on `console`; a context that clears it.

    Only leaving the context ends the bar where a run fails.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._seen = ""
        self._printed = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[seen]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar, at the step that a resumed run goes on from."""
        if state.is_world_process_zero:
            self._task = self._bars.add_task("training", total=state.max_steps, completed=state.global_step, seen="")
            self._bars.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        if state.is_world_process_zero:
            self._bars.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest numbers; a validation leaves a line of its own."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._seen = _training_line(logs)
            self._bars.update(self._task, seen=self._seen)
            tenth = 10 * state.global_step // state.max_steps
            if not self.console.is_terminal and tenth > self._printed:
                self._printed = tenth
                self.console.print(f"step {state.global_step}/{state.max_steps}  {self._seen}")
        elif any(name.startswith("eval_loss") for name in logs):
            losses = {name.removeprefix("eval_loss_"): value for name, value in logs.items() if "eval_loss" in name}
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.console.print(f"step {state.global_step}  validation  {shown}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar."""
        self._bars.stop()


def _training_line(logs: dict[str, float]) -> str:
    shown = f"loss {logs.get('lm_loss', logs['loss']):.3f}  {logs['tokens_per_second']:,.0f} tokens/s"
    if "load_evenness" in logs:
        shown += f"  load {logs['load_max_over_mean']:.2f}x"
    if logs.get("dead_experts"):
        shown += f"  {logs['dead_experts']:.0f} dead"
    return shown


class RoutingWatch(TrainerCallback):
    """Says, once each, that routing collapses or that experts are dead, and what to do.

    Routing collapses when a layer is three quarters of the way from even load to the same K experts for every token
    (`meter.concentration`). An expert is dead when it takes less than a hundredth of an equal share. Either must show
    in two consecutive lines of the history, for the first tokens of a run say little.
    """

    COLLAPSED = 0.75

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._seen_before: set[str] = set()
        self._said: set[str] = set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the load of the latest steps."""
        if not state.is_world_process_zero or not logs or "load_concentration" not in logs:
            return
        seen = {}
        if logs["load_concentration"] > self.COLLAPSED:
            seen["collapse"] = (
                f"routing collapses at step {state.global_step}: in some layer nearly every token goes to the same "
                "experts. Raise router_aux_loss_coef (tenfold, up to 0.1), lower router_learning_rate, or normalise "
                "the logits with router_logit_scale=1"
            )
        if logs["dead_experts"]:
            seen["dead experts"] = (
                f"experts that take next to no tokens at step {state.global_step}, over all layers: "
                f"{logs['dead_experts']:.0f}; what takes none learns nothing. Raise router_aux_loss_coef, or convert "
                "with another router"
            )
        for trouble, message in seen.items():
            if trouble in self._seen_before - self._said:
                self._said.add(trouble)
                self.say(message)
        self._seen_before = set(seen)
