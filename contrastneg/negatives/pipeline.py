"""A list of stages: whether it can be right, running it, and what it did to the table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from contrastneg import distributed
from contrastneg.checks import WrongSetting, refusal_of
from contrastneg.negatives.core import KINDS, PHRASES, WORDS, Clock, Facts, Negatives, Stage, of_image
from contrastneg.negatives.live import hardness_ratios
from contrastneg.schedules import value

Kind = TypeVar("Kind")


def check_pipeline(stages: Sequence[Stage], provides: set[str], capacity: int | None = None) -> None:
    """Refuse a list of stages that cannot be right.

    Args:
        stages: The stages in the order in which they will run.
        provides: What holds before the first: "id" (images behind keys are known), "queue" or "batch" (where the keys
            come from), "key_gradient" (they carry one). Added are "iid" (candidates are drawn alike from the data), "plain
            mass" (no weight makes up for dropped candidates), "all ranks" (none is left out for its rank by hardness) and
            "candidates of the method" (no source has added or replaced any).
        capacity: Keys that the queue holds when full; None without a queue.

    Raises:
        ValueError: A stage comes too early or too late, needs what an earlier one took away or nobody gives, throws away
            what another source chose, or asks for more candidates than the queue holds.
    """
    holds = {"iid", "plain mass", "all ranks", "candidates of the method", *provides}
    taken: dict[str, str] = {}
    furthest, before, source = 0, "", ""
    for number, stage in enumerate(stages):
        name = named(number, stage)
        if (kind := getattr(stage, "kind", None)) not in KINDS:
            raise ValueError(f"{name} has kind {kind!r}: give its class one of {', '.join(KINDS)}")
        place = KINDS.index(stage.kind)
        if place < furthest:
            raise ValueError(
                f"{name} ({stage.kind}) stands after {before} ({KINDS[furthest]}): order stages as {', '.join(KINDS)}"
            )
        if unknown := (stage.gives | stage.breaks) - WORDS - provides:
            raise ValueError(f"{name} gives or breaks {sorted(unknown)}: nobody knows these, take {sorted(WORDS)}")
        if "key_gradient" in stage.needs - holds:
            raise ValueError(
                f"{name} needs candidates that carry a gradient, as only those of SimCLR do: take SimCLR, or "
                "another setting of the stage"
            )
        for need in sorted(stage.needs - holds):
            raise ValueError(f"{name} needs {PHRASES.get(need, need)}, {missing(need, taken, place)}")
        if source and stage.replaces_candidates:
            append = "give it combine append, or " if hasattr(stage, "combine") else ""
            raise ValueError(f"{name} replaces the candidates that {source} chose: {append}leave one of them out")
        source = name if stage.chooses else source
        if stage.kind in taken:
            raise ValueError(
                f"{name} stands after {taken[stage.kind]}, which knows no probability of candidates that "
                "are made: leave one of them out"
            )
        furthest, before = place, name
        breaks = stage.breaks | ({"candidates of the method"} if stage.chooses else set())
        taken.update(dict.fromkeys(breaks & {*holds, *KINDS}, name))
        holds = (holds | stage.gives) - breaks
    if capacity is not None:
        check_candidates(stages, capacity, "the queue holds {} keys: raise method.queue_size")


def check_candidates(stages: Sequence[Stage], most: int, why: str) -> None:
    """Refuse stages that ask for more of a method's own candidates than there can be.

    Args:
        stages: The stages in order; those after a source that chooses candidates meet others.
        most: Candidates that there can be.
        why: See :func:`check_counts`.

    Raises:
        ValueError: A stage does.
    """
    for number, stage in enumerate(takewhile(lambda stage: not stage.chooses, stages)):
        check_counts(number, stage, stage.of_candidates, most, why)


def check_counts(number: int, stage: Stage, names: Sequence[str], most: int, why: str) -> None:
    """Refuse settings that ask for more candidates or images than there can be.

    Args:
        number: Place of the stage in the list.
        stage: The stage.
        names: Its settings that count.
        most: How many there can be.
        why: What there is, with ``{}`` for ``most``, and what else to do about it than to ask for fewer.
    """
    for name in names:
        setting = getattr(stage, name)
        asked = 0 if setting is None else max(round(value(setting, progress)) for progress in (0.0, 1.0))
        if asked > most:
            raise WrongSetting(stage, name, f"is {asked} but {why.format(most)}, or ask for fewer").at(key_of(number))


def key_of(number: int) -> str:
    """How a settings file names the stage at a place in the list."""
    return f"method.stages[{number}]"


def named(number: int, stage: Stage) -> str:
    """A stage by its key in a settings file and its class."""
    return f"{key_of(number)} {type(stage).__name__}"


def missing(need: str, taken: Mapping[str, str], place: int) -> str:
    """Why a stage has not what it needs, and what to do.

    Args:
        need: A word of ``PHRASES``.
        taken: The stage that took away each word that held and does no longer.
        place: Kind of the stage that needs it, by place among ``KINDS``: others may stand before it up to this.
    """
    if need in taken:
        return f"which it cannot have after {taken[need]}: leave one of them out"
    givers = sorted(
        {kind.__name__ for kind in descendants(Stage) if need in given(kind) and KINDS.index(kind.kind) <= place}
    )
    put = f"put {' or '.join(givers)} before it, or " if givers else ""
    return f"which no stage before it gives: {put}leave it out"


def descendants(base: type[Kind]) -> list[type[Kind]]:
    """All classes below a class."""
    return [kind for child in base.__subclasses__() for kind in (child, *descendants(child))]


def given(kind: type[Stage]) -> frozenset[str]:
    """What stages of a class give whatever their settings."""
    gives: Any = kind.gives
    return gives if isinstance(gives, frozenset) else frozenset()


@dataclass
class Record:
    """What the stages of one step did to its table and the loss made of it, left on the device.

    Every number is a ratio of two sums over the queries of this process, so that :meth:`reduced` can be exact on several.
    Made at the steps that are logged only, because whole tables are looked at after each stage.

    Args:
        label_table: Label of each image by stable index, -1 unknown; None without labels. Used for these numbers only.
    """

    label_table: Int64[Tensor, " T"] | None = None
    ratios: dict[str, Float[Tensor, " 2"]] = field(default_factory=dict)
    """Numerator and denominator by name: ``negatives/STAGE/kept``, ``.../effective``, ``.../same_class``,
    ``.../empty_rows``; ``candidates/NAME`` where sources choose;
    for a stage that looks for false negatives also ``.../found``, ``.../precision``, ``.../recall``; what
    it reports itself; ``hardness/NAME``; ``loss/NAME``."""

    @property
    def numbers(self) -> dict[str, Float[Tensor, ""]]:
        """Number by name, of this process; NaN where there was nothing to count."""
        return {name: ratio[0] / ratio[1] for name, ratio in self.ratios.items()}

    def reduced(self) -> dict[str, Float[Tensor, ""]]:
        """Number by name, over all processes, which must all have recorded the same names."""
        if not self.ratios:
            return {}
        sums = distributed.total(torch.stack(list(self.ratios.values())))
        return dict(zip(self.ratios, sums[:, 0] / sums[:, 1], strict=True))

    def __call__(self, name: str, values: Tensor) -> None:
        """Keep the mean of a measurement of the loss, one value per query."""
        self._mean(f"loss/{name}", values.detach())

    def share(self, name: str, part: Bool[Tensor, " B"], whole: Bool[Tensor, " B"]) -> None:
        """Keep the share of some queries among others."""
        self._ratio(name, part.sum(), whole.sum())

    def _ratio(self, name: str, part: Tensor, whole: Tensor) -> None:
        self.ratios[name] = torch.stack([part.float(), whole.float()])

    def _mean(self, name: str, values: Tensor) -> None:
        values = values.float()
        self._ratio(name, values.sum(), values.new_full((), len(values)))

    def note(self, name: str, negatives: Negatives) -> None:
        """Measure the candidates that repel after a stage: those that it attracted count no more than those it removed.

        ``kept`` candidates per query; ``effective`` number of negatives, e to the entropy of their weights; ``same_class``
        share among candidates of known class, by weight; ``empty_rows`` share of queries with no candidate left.
        """
        log_weight = negatives.log_weight.detach()
        if negatives.attracted is not None:
            log_weight = log_weight.masked_fill(negatives.attracted, -torch.inf)
        if log_weight.shape[1] == 0:  # an empty queue
            self._mean(f"negatives/{name}/kept", log_weight.sum(dim=1))
            self._mean(f"negatives/{name}/empty_rows", torch.ones_like(log_weight.sum(dim=1)))
            return
        kept = log_weight > -torch.inf
        weight = (log_weight - log_weight.amax(dim=1, keepdim=True).clamp(min=torch.finfo(log_weight.dtype).min)).exp()
        total = weight.sum(dim=1)
        law = weight / total.clamp(min=1)[:, None]
        some = total > 0
        self._mean(f"negatives/{name}/kept", kept.sum(dim=1))
        effective = torch.special.entr(law).sum(dim=1).exp()
        self._ratio(f"negatives/{name}/effective", torch.where(some, effective, 0).sum(), some.sum())
        self._mean(f"negatives/{name}/empty_rows", ~some)
        if self.label_table is not None:
            known, same = self._same_class(negatives)
            self._ratio(f"negatives/{name}/same_class", (weight * same).sum(), (weight * known).sum())

    def note_candidates(self, negatives: Negatives, *, replaced: bool) -> None:
        """Count what the candidates are that source stages chose, the query's own image among them: every pair once.

        ``candidates/own`` is the share of pairs that show one image, noted only where the last source replaced the candidates:
        beside those of the method stand the query's own views, and columns that are offered to one query alone.
        ``candidates/same_class`` is the share of the pairs of two images of known class that are of one class. Places that no
        candidate fills do not count.

        Args:
            negatives: The table after the last source.
            replaced: Whether that source chose in place of the method's candidates.
        """
        own = (negatives.key_id == negatives.query_id[:, None]) & (negatives.key_id >= 0)
        there = negatives.kept | own
        if replaced:
            self._ratio("candidates/own", own.sum(), there.sum())
        if self.label_table is not None:
            known, same = self._same_class(negatives)
            other = there & ~own
            self._ratio("candidates/same_class", (same & other).sum(), (known & other).sum())

    def note_hardness(self, negatives: Negatives, temperature: float) -> None:
        """Measure how hard the candidates are that the loss sees, see :func:`contrastneg.negatives.live.hardness_ratios`.

        Nothing is noted of an empty table.
        """
        if negatives.similarity.shape[1] == 0:
            return
        if self.label_table is not None:
            self.label_table = self.label_table.to(negatives.query_id.device)
        for name, ratio in hardness_ratios(negatives, temperature, self.label_table).items():
            self._ratio(f"hardness/{name}", *ratio)

    def note_found(self, name: str, before: Negatives, after: Negatives) -> None:
        """Measure what a stage took for false negatives: the candidates that it removed or attracted.

        ``found`` per query. Where labels are known, over all pairs of the step with known labels: ``precision``, the share
        of the found that are of the query's class, NaN if none is found; ``recall``, the share of the candidates of the
        query's class that are found. Candidates removed or attracted before do not count.
        """
        open_before = before.repelled
        found = open_before & ~after.repelled[:, : open_before.shape[1]]
        self._mean(f"negatives/{name}/found", found.sum(dim=1))
        if self.label_table is not None:
            known, same = self._same_class(before)
            hits = (found & same).sum()
            self._ratio(f"negatives/{name}/precision", hits, (found & known).sum())
            self._ratio(f"negatives/{name}/recall", hits, (open_before & same).sum())

    def report(self, name: str, stage: Stage) -> None:
        """Keep what a stage says of its state: the mean over the processes where it is a number."""
        for key, number in stage.report().items():
            self._ratio(f"negatives/{name}/{key}", number.detach().nan_to_num(), ~number.isnan())

    def _same_class(self, negatives: Negatives) -> tuple[Bool[Tensor, "B M"], Bool[Tensor, "B M"]]:
        """Pairs whose labels are known, and those of them with the same label."""
        assert self.label_table is not None
        table = self.label_table = self.label_table.to(negatives.query_id.device)
        label, own = of_image(table, negatives.key_id, -1), of_image(table, negatives.query_id, -1)[:, None]
        known = (label >= 0) & (own >= 0)
        return known, known & (label == own)


class Pipeline(nn.Module):
    """The stages of a method; those with state are parts of it, and so of its checkpoints.

    Args:
        stages: The stages in order.
        provides: What holds before the first, see :func:`check_pipeline`.
        dim: Width of the embeddings that are compared.
        loss: What follows the stages; told of the images, too, if it has a ``begin``. Its state is a part of the method.
        capacity: Keys that the queue holds when full; None without a queue.

    Raises:
        ValueError: The list cannot be right.
    """

    refreshed: Tensor

    def __init__(
        self,
        stages: Sequence[Stage],
        provides: set[str],
        dim: int,
        loss: Any = None,
        capacity: int | None = None,
    ) -> None:
        super().__init__()
        check_pipeline(stages, provides, capacity)
        self.stages = list(stages)
        self.dim = dim
        self.states = nn.ModuleDict(
            {
                f"{place}_{type(stage).__name__}": stage
                for place, stage in enumerate(stages)
                if isinstance(stage, nn.Module)
            }
        )
        self._labels: Tensor | None = None
        self.register_buffer("refreshed", torch.tensor(-1))  # epoch of the last refresh
        self._refreshed = -1  # the same for the host: reading a buffer would wait for the device at every step
        self._facts: Facts | None = None
        self._told = [loss] if hasattr(loss, "begin") else []  # a list: its state is part of the method, not of this
        self._asking = [*(stage for stage in stages if type(stage).begin is not Stage.begin), *self._told]

    def labels(self, device: torch.device) -> Int64[Tensor, " T"] | None:
        """Label of each image by stable index, for statistics; None where nothing is known.

        Args:
            device: Where they are wanted; they stay there for the next call.
        """
        labels = self._facts.labels if self._facts is not None and self._labels is None else self._labels
        self._labels = None if labels is None else labels.to(device)
        return self._labels

    @property
    def stages_of_foreign_images(self) -> list[Stage]:
        """What can be done to queries that were never pretrained on: no source, which looks candidates up by the query's
        image, and nothing that needs the law of its draw."""
        kept: list[Stage] = []
        for stage in self.stages:
            known = "log_prob" not in stage.needs or any("log_prob" in earlier.gives for earlier in kept)
            if stage.kind != "source" and known:
                kept.append(stage)
        return kept

    def begin(self, data: Any) -> None:
        """Tell the stages and the loss, once, what is known of the images.

        Args:
            data: A data module with ``facts(dim)``.

        Raises:
            ValueError: One of them cannot work on these images, or asks about them and the data module does not tell.
        """
        if hasattr(data, "support_views"):
            data.support_views = max((stage.support_views for stage in self.stages), default=0)
        if self._facts is None and hasattr(data, "facts"):
            facts = self._facts = data.facts(self.dim)
            for number, stage in enumerate(self.stages):
                check_counts(number, stage, stage.of_images, facts.count, "there are {} images: take more")
                try:
                    stage.begin(facts)
                except ValueError as error:
                    raise refusal_of(stage, key_of(number), error) from error
            for part in self._told:
                part.begin(facts)
        elif self._facts is None and self._asking:
            raise ValueError(
                f"{type(self._asking[0]).__name__} must know the images but the data module has no facts(dim): "
                "use contrastneg.data.module.PretrainData, or give yours that method"
            )

    def refresh(self, embeddings: Callable[[], Float[Tensor, "T D"]], clock: Clock, epoch: int) -> None:
        """See :meth:`Stage.refresh`; does nothing the second time in an epoch, so a run resumed within one goes on."""
        if not self.stages or self._refreshed == epoch:
            return
        self._refreshed = epoch
        self.refreshed.fill_(epoch)
        for place, stage in enumerate(self.stages):
            stage.refresh(embeddings, replace(clock, stage=place))

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._refreshed = int(self.refreshed)

    def update(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"], clock: Clock) -> None:
        """See :meth:`Stage.update`."""
        with torch.autocast(
            keys.device.type, enabled=False
        ):  # what stages remember is kept in the precision they choose
            for place, stage in enumerate(self.stages):
                stage.update(keys, image_id, replace(clock, stage=place))


def run_stages(negatives: Negatives, stages: Sequence[Stage], clock: Clock, record: Record | None = None) -> Negatives:
    """The table after every stage, each with its own random numbers.

    Args:
        negatives: The table of all candidates.
        stages: The stages in order.
        clock: Where the run stands.
        record: Is told of the table before the first stage and after each.

    Raises:
        ValueError: A stage returns something else than a table.
    """
    if record is not None and stages:
        record.note("all", negatives)
    last_source = max((place for place, stage in enumerate(stages) if stage.chooses), default=-1)
    for place, stage in enumerate(stages):
        before, negatives = negatives, stage(negatives, replace(clock, stage=place))
        if not isinstance(negatives, Negatives):
            returned = "nothing" if negatives is None else f"a {type(negatives).__name__}"
            raise ValueError(f"{named(place, stage)} returned {returned}: a stage returns the table that it made")
        if record is not None:
            name = f"{place + 1}_{type(stage).__name__}"
            record.note(name, negatives)
            if place == last_source:
                record.note_candidates(negatives, replaced=stage.replaces_candidates)
            if stage.kind == "eliminate":
                record.note_found(name, before, negatives)
            record.report(name, stage)
    return negatives
