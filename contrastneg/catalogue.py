"""Every heading of the survey of negative sampling, and every stage and loss here: what it is, what it costs, how to run it.

``contrastneg catalogue`` shows it. Verdicts say how a class here relates to the paper:

- faithful: the same mathematical object, only the names change;
- analogy: an ingredient is replaced, and the note says by what;
- reconstruction: the paper's formula or setting was not found, and the note says what stands in for it;
- not applicable: nothing to build for images, and the note says why.

To add an entry, add one ``Entry`` to its heading in ``ENTRIES``; of a class outside ``contrastneg.negatives`` and
``contrastneg.objectives`` give the path within the package, ``"data.module.PretrainData"``.
"""

import importlib
import inspect
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

from contrastneg import negatives, objectives
from contrastneg.negatives import Popularity, Stage
from contrastneg.negatives.core import KINDS as STAGE_KINDS
from contrastneg.negatives.core import PHRASES
from contrastneg.negatives.popularity import OracleClassSize
from contrastneg.objectives import Objective
from contrastneg.schedules import Schedule

Verdict = Literal["faithful", "analogy", "reconstruction", "not applicable"]
BEYOND = "beyond"
HEADINGS = {
    "1": "1 Background",
    "2.1": "2.1 Static sampling",
    "2.2": "2.2 Hard negatives",
    "2.3": "2.3 Adversarial",
    "2.4": "2.4 Graphs",
    "2.5": "2.5 Additional data",
    "3.1": "3.1 False negatives",
    "3.2": "3.2 Curriculum",
    "3.3": "3.3 Number of negatives",
    "3.4": "3.4 Debiasing",
    "3.5": "3.5 Without sampling",
    "4": "4 Outlook",
    BEYOND: "Beyond the survey",
}
KINDS = (*STAGE_KINDS, "popularity", "loss", "other")
COLUMN_SETTINGS = {"column", "tiers"}  # that must name a column, where others may
LETTERS = (
    "B queries, K candidates, M kept or made, D width, T images, C clusters, k neighbours; beside the table's B·K·D"
)


@dataclass(frozen=True)
class Entry:
    """A method or claim: one row of the survey, one of its methods, or a companion."""

    id: str
    """Row of the survey that it belongs to; "beyond" for companions."""
    name: str
    """What it is."""
    papers: str
    """Papers, with their number in the survey in brackets."""
    verdict: Verdict
    """How what is here relates to them."""
    note: str
    """The surrogate of an analogy, the reason of what does not apply, or what to know."""
    cost: str = ""
    """What it costs and what that grows with, in the letters of ``LETTERS``."""
    classes: tuple[str, ...] = ()
    """Classes that do it."""
    recipes: tuple[str, ...] = ()
    """Files below configs/ that run it."""
    without: str = ""
    """Why classes have no recipe."""

    @property
    def heading(self) -> str:
        """Heading of the survey that the row stands under."""
        return HEADINGS[max((start for start in HEADINGS if self.id.startswith(start)), key=len)]

    @property
    def kinds(self) -> set[str]:
        """Kinds of its classes."""
        return {kind_of(class_of(path)) for path in self.classes}

    @property
    def needs(self) -> tuple[str, ...]:
        """What its classes say they need."""
        return tuple(dict.fromkeys(need for path in self.classes for need in needs_of(class_of(path))))

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Settings of its classes that may change over the run."""
        return tuple(dict.fromkeys(name for path in self.classes for name in scheduled_of(class_of(path))))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its classes, by the names that settings give them."""
        return tuple(path.rpartition(".")[2] for path in self.classes)


def class_of(path: str) -> Any:
    """The class, or function, that an entry names."""
    home, _, name = path.rpartition(".")
    if home:
        return getattr(importlib.import_module(f"contrastneg.{home}"), name)
    return getattr(negatives if hasattr(negatives, name) else objectives, name)


def kind_of(thing: Any) -> str:
    """Its place among ``KINDS``."""
    if not inspect.isclass(thing):
        return "other"
    if issubclass(thing, Stage):
        return thing.kind
    return "popularity" if issubclass(thing, Popularity) else "loss" if issubclass(thing, Objective) else "other"


def scheduled_of(thing: Any) -> list[str]:
    """Settings of a class that take a schedule in the place of a number."""
    if not is_dataclass(thing):
        return []
    types = get_type_hints(thing)
    return [field.name for field in fields(thing) if field.init and Schedule in get_args(types[field.name])]


def needs_of(thing: Any) -> list[str]:
    """What a class says that it needs, in words."""
    needs: Any = getattr(thing, "needs", frozenset())
    if isinstance(needs, property):  # where it hangs on a setting, that of the defaults
        needs = thing().needs
    words = [PHRASES.get(need, str(need)) for need in sorted(needs)]
    if is_dataclass(thing) and COLUMN_SETTINGS & {field.name for field in fields(thing)}:
        words.append("a metadata column")
    oracle = getattr(thing, "oracle", False) is True or thing is OracleClassSize
    return [*words, "true labels (oracle)"] if oracle else words


def cifar(*names: str) -> tuple[str, ...]:
    """Method recipes for CIFAR-10."""
    return tuple(f"cifar10/negatives/{name}.yaml" for name in names)


def large(*names: str) -> tuple[str, ...]:
    """Method recipes for ImageNet and ImageNet-100, as ``imagenet/NAME``."""
    return tuple("/negatives/".join(name.split("/")) + ".yaml" for name in names)


def shaped(*names: str) -> tuple[str, ...]:
    """Method recipes for the embedded set, which has metadata."""
    return tuple(f"shapes/negatives/{name}.yaml" for name in names)


CLAIM = "a claim, seen in the log of any run"
BASES = ("cifar10/moco.yaml", "cifar10/simclr.yaml")
GRAPH = "memory T·D and T·k; search T²·D every 5 epochs"
BANK = "memory T·D"
ROW_LOSS = "B·K"
SECOND_MOMENT = "B·D², no table; after a stage B·K·D and the table"

# fmt: off
ENTRIES: tuple[Entry, ...] = (
    # 1 Background
    Entry("1.1a", "Negatives by a law or made", "–", "faithful",
          "one table of candidates that stages draw from, weigh and add to", "B·K·D for the table", ("Negatives",),
          BASES),
    Entry("1.1b", "InfoNCE", "–", "faithful", "softmax cross-entropy of the positive; without stages no table is made",
          "B·K·D, memory B·D", ("InfoNCE",), BASES),
    Entry("1.1b", "BPR", "[1] BPR", "faithful", "each negative alone below the positive, mean over negatives", ROW_LOSS,
          ("BPR",), cifar("bpr")),
    Entry("1.1b", "Binary cross-entropy", "–", "faithful", "negatives together weigh as much as the positive", ROW_LOSS,
          ("BinaryCrossEntropy",), cifar("binary_cross_entropy")),
    Entry("1.1c", "Views of other images", "MoCo arXiv:1911.05722, SimCLR arXiv:2002.05709", "faithful",
          "about images itself: what both methods do", "B·K·D", ("methods.MoCo", "methods.SimCLR"), BASES),
    Entry("1.2a", "Efficient", "–", "analogy",
          "stored keys take no gradient: a queue saves encoding, not updates of embeddings", "memory K·D",
          ("queue.KeyQueue",), BASES[:1]),
    Entry("1.2b", "Effective: a subset matches all", "–", "faithful", "a claim to test: subsets at equal mass",
          "B·K draws and a top-k", ("UniformSubset", "HardestSubset"), cifar("uniform", "hardest")),
    Entry("1.2c", "Few positives, many candidates", "–", "faithful", "1 positive to K candidates here, too",
          without="a property of the task"),
    Entry("1.2d", "Random negatives are soon satisfied", "–", "faithful",
          "see train/accuracy, and negatives/.../effective with stages", without=CLAIM),
    Entry("1.2e", "Good negatives speed up training", "–", "faithful", "see the kNN scores along the way, by epoch",
          without=CLAIM),
    Entry("1.3a", "A random negative teaches little", "–", "faithful",
          "its share of the gradient is its softmax probability", without=CLAIM),
    Entry("1.3b", "Hard: similar but different", "–", "faithful", "large cosine with the query", "B·K top-k",
          ("HardestSubset",), cifar("hardest")),
    Entry("1.3c", "Too hard is false", "–", "faithful",
          "same class; the oracle drops these, and same_class is logged where labels exist", "B·K compared",
          ("OracleSameLabel",), cifar("class_oracle")),
    Entry("1.3d", "Percentiles of difficulty", "[93] arXiv:2010.06682", "faithful",
          "about images itself; 5 % and 0.1 % are edges of bins that the authors chose, not measured shares",
          "B·K sort", ("HardnessBand",), cifar("hardest_5_percent") + large("imagenet/hardest_5_percent")),
    # 2.1 Static sampling
    Entry("2.1a", "A law fixed during training", "–", "faithful", "a queue is static in law, though its content moves",
          "B·K draws", ("UniformSubset",), cifar("uniform")),
    Entry("2.1b", "RNS, uniform", "[1], [2], [11]", "faithful", "uniform subset of queue, batch or memory",
          "B·K draws and a top-k", ("UniformSubset",), cifar("uniform")),
    Entry("2.1b", "Uniform from a memory bank", "InstDisc", "analogy",
          "the positive stays the other view and the loss the method's", BANK, ("MemoryBank",), cifar("memory_bank")),
    Entry("2.1c", "PNS, popularity to a power", "[3] word2vec, [4], [5]-[8]", "analogy", "clusters stand for types",
          "B·K draws; k-means T·C·D an epoch", ("PopularSubset", "ClusterSize"), cifar("popular")),
    Entry("2.1c", "PNS by nearest-neighbour in-degree", "[3], [5]-[8]", "analogy",
          "hubs among images for nodes of high degree", "search T²·D every 5 epochs", ("InDegree", "PopularityWeight"),
          cifar("popular_by_degree")),
    Entry("2.1c", "PNS by hits", "[3]", "analogy", "how often an image was hard for frequency", "B·K top-k, memory T",
          ("HitRate", "PopularityWeight"), cifar("popular_by_hits")),
    Entry("2.1c", "PNS by a metadata column", "[3]", "faithful", "where the column holds the types", "counted once",
          ("ColumnSize", "PopularityWeight"), shaped("popular_places")),
    Entry("2.1c", "PNS by class", "[3]", "faithful", "labels define the types: an oracle", "counted once",
          ("OracleClassSize", "PopularityWeight"), cifar("oracle_class_size")),
    Entry("2.1d", "Rare preferred", "[10]", "analogy",
          "clusters for types; the sign is the survey's, its value is not verified",
          "B·K draws; k-means T·C·D an epoch", ("PopularSubset",), cifar("rare")),
    Entry("2.1e", "Popularity as a plain weight", "[9] eALS, [12], [17]", "analogy",
          "clusters for items; [9] weighs a loss over all and samples nothing", "k-means T·C·D an epoch",
          ("PopularityWeight", "ClusterSize"), cifar("eals")),
    Entry("2.1f", "Exposed but ignored", "–", "not applicable",
          "nothing was shown to anybody and refused; frequent clusters hold more false negatives"),
    Entry("2.1g", "PNS is not reliably better than RNS", "[73]", "faithful", "a claim to test", "B·K draws",
          ("UniformSubset", "PopularSubset"), cifar("uniform", "popular")),
    # 2.2 Hard negatives
    Entry("2.2a", "Scores of the model", "–", "faithful", "cosine with the query, its positive, or both",
          "B·K·D for each", ("negatives.score_of",), cifar("hardest", "anchor_and_positive")),
    Entry("2.2b", "Mining by rounds", "[13], [16]", "analogy",
          "images for windows: searched among all every few epochs", "search T²·D a round, memory T·D",
          ("MinedNeighbours",), cifar("mined")),
    Entry("2.2c", "OHEM", "[21] OHEM", "analogy", "queries for regions; InfoNCE ranks them", "B·K", ("HardestQueries",),
          cifar("ohem")),
    Entry("2.2c", "OHEM's suppression", "[21] OHEM", "analogy", "cosine of embeddings for overlap of boxes",
          "B·M²·D in the pool of M", ("Redundant",), cifar("redundant")),
    Entry("2.2c", "Semi-hard", "FaceNet", "analogy", "cosines, and many candidates for one per pair", "B·K top-k",
          ("SemiHardSubset",), cifar("semi_hard")),
    Entry("2.2c", "Triplet loss", "FaceNet", "analogy", "all candidates for one per pair", ROW_LOSS, ("Triplet",),
          cifar("triplet")),
    Entry("2.2c", "SupCon", "[34] arXiv:2004.11362", "faithful",
          "labels attract: an oracle; the code's factor of the temperature is left out", "B·K compared",
          ("MultiPositive", "OracleSameLabel"), cifar("supcon")),
    Entry("2.2d", "DNS, hardest of a random pool", "[15] DNS", "faithful", "one is kept there, M here",
          "B·K draws and two top-k", ("HardestOfRandom",), cifar("dns")),
    Entry("2.2d", "Nearest to the query", "–", "faithful", "the most common rule", "B·K top-k", ("HardestSubset",),
          cifar("hardest")),
    Entry("2.2d", "By rank", "[17]", "reconstruction", "exponential in the rank, from memory, not verified", "B·K sort",
          ("RankSubset",), cifar("rank")),
    Entry("2.2e", "Nearest to the positive, max and mix", "[19]", "analogy",
          "keys of the queue for those of the past epoch", "B·K·D and a top-k", ("HardestSubset",), cifar("max_mix")),
    Entry("2.2e", "Truncated by the positive", "[25] BootEA", "faithful",
          "uniform among the nearest to the positive; images for entities", "B·K·D and a sort", ("HardnessBand",),
          cifar("bootea")),
    Entry("2.2e", "Cache of hard ones", "[27] NSCaching", "analogy",
          "images for corrupted triplets, scored by the key; own memory, also over a queue",
          "memory T·D and T·M; B·M·D a step", ("HardCache",), cifar("nscaching")),
    Entry("2.2e", "Standardised hardness", "[36] Dual-AMN", "analogy",
          "the queue for all entities; one direction a query", ROW_LOSS, ("DualAMN",), cifar("dual_amn")),
    Entry("2.2f", "Query and positive together", "[73] KGPolicy", "faithful", "the score only; the walk is row 2.4d",
          "B·K·D", ("HardestOfRandom",), cifar("anchor_and_positive")),
    Entry("2.2g", "Mixes of hard negatives", "[32] MoCHi arXiv:2010.01028", "faithful",
          "about images itself; closed forms, no mix is made", "B·K top-k; M similarities by closed form", ("MoCHi",),
          cifar("mochi") + large("imagenet/mochi", "imagenet100/mochi")),
    Entry("2.2h", "Synthesis as the goal", "–", "faithful", "a kind of stage of its own, after all others", "see MoCHi",
          ("MoCHi",), cifar("mochi")),
    # 2.3 Adversarial
    Entry("2.3a", "Adversarial sampler", "[39] IRGAN, [41] KBGAN", "analogy",
          "a linear scorer over the keys of a table; experimental", "B·K times the width of its scorer",
          ("LearnedPolicy",), cifar("irgan")),
    Entry("2.3b", "Unstable and slow", "–", "faithful",
          "a warning: of a given entropy the best adversary is known in closed form (derived here)", "B·K draws",
          ("BestResponse",), cifar("best_response")),
    Entry("2.3c", "Adversarial examples", "[59] CLAE arXiv:2010.12050", "analogy", "keys are moved, not images",
          "B·K·D once more", ("AdversarialShift",), cifar("clae")),
    Entry("2.3d", "Generated negatives", "[67] NEGCUT", "analogy",
          "the query for features of patches in image translation",
          "38 times the plain loss at K = 4,096: B·M·(D + noise) times its inner width", ("GeneratedNegatives",),
          cifar("negcut")),
    Entry("2.3e", "Learned bank", "AdCo arXiv:2011.08435", "faithful", "about images itself; not in the survey's list",
          "memory 2·K·D; B·K·D once more", ("AdversarialBank",), cifar("adco") + large("imagenet/adco")),
    # 2.4 Graphs
    Entry("2.4a", "Structure beside semantics", "–", "analogy",
          "a graph of nearest images adds no new information; one of metadata does", GRAPH, ("Edges", "GraphWalk"),
          cifar("random_walk") + shaped("gneg")),
    Entry("2.4b", "Rows of a power of a graph", "[69] GNEG", "analogy",
          "nearest images, or shared metadata, for words that occur together", f"{GRAPH}; B·M draws",
          ("CooccurrenceRows",), cifar("gneg") + shaped("gneg")),
    Entry("2.4c", "Random walks", "[68], [71], [75] SamWalker++", "analogy",
          "a graph of nearest images for a given one", f"{GRAPH}; B·walks·steps", ("GraphWalk",), cifar("random_walk")),
    Entry("2.4c", "Learned social influence", "[71], [75]", "not applicable",
          "images have no social network whose strengths could be learned"),
    Entry("2.4d", "Guided walk", "[73] KGPolicy", "analogy",
          "a greedy walk for the policy, nearest images for a knowledge graph", f"{GRAPH}; B·(k+M)·D", ("GuidedWalk",),
          cifar("kgpolicy")),
    Entry("2.4e", "Differentiable neighbours", "[76] DSKReG", "not applicable",
          "it samples neighbours to aggregate, and no negative"),
    Entry("2.4f", "Band of personalised PageRank", "[70] PinSage", "analogy",
          "nearest images for pins and boards; the band is rescaled", f"{GRAPH}; B·walks·steps", ("PageRankBand",),
          cifar("pinsage")),
    Entry("2.4g", "Power of the positives' law, by chains", "[72] MCNS", "analogy",
          "the model's similarity for edges; mixture in the ratio, unlike the code; own memory, also over a queue",
          f"{GRAPH}; B·chains·moves·D", ("MetropolisChain",), cifar("mcns")),
    Entry("2.4g", "Power of the positives' law, exactly", "[72] MCNS", "analogy",
          "the model's similarity for edges; drawn over the table", "B·K draws", ("SoftmaxSubset",), cifar("softmax")),
    Entry("2.4h", "Hop mixing", "[74] MixGCF", "analogy", "means over nearest images for layers of a graph network",
          "16 times the plain loss at K = 4,096: B·M·D a candidate and hop; search T²·D an epoch, memory T·D a hop",
          ("HopMix",), cifar("mixgcf")),
    Entry("2.4h", "Positive mixing alone", "[74] MixGCF", "analogy", "one embedding for the layers of a graph network",
          "B·K top-k", ("PositiveMix",), cifar("positive_mix")),
    # 2.5 Additional data
    Entry("2.5a", "Social ties", "[77], [78], [85], [86]", "analogy",
          "frames of a sequence, or near copies, for friends: dropped, weighed or attracted", "B·K compared a tier",
          ("MetadataTiers",), shaped("metadata_tiers", "ties_attract")),
    Entry("2.5b", "Geography", "[80], [81], [84]", "analogy",
          "place of capture for distance; a shared background is what makes it hard", "B·K compared",
          ("RelatedSubset", "RelatedWeight"), shaped("same_place", "same_place_weight")),
    Entry("2.5c", "Item category", "[87] DGCN", "analogy", "a coarse column for categories; drawn without replacement",
          "B·K compared", ("RelatedSubset",), shaped("dgcn")),
    Entry("2.5d", "Viewed but not clicked", "[79], [82], [83]", "analogy",
          "no user and no exposure: only the order of tiers carries over", "B·K compared a tier", ("MetadataTiers",),
          shaped("metadata_tiers")),
    Entry("2.5e", "Several behaviours", "[99]", "analogy",
          "each kind of pair would be a whole-data term; one kind is here", SECOND_MOMENT, ("Square",), cifar("square")),
    # 3.1 False negatives
    Entry("3.1a", "Elimination should be learned", "–", "faithful",
          "a kind of stage of its own; precision and recall are logged where labels exist", "B·K",
          ("SameCluster", "GlobalQuantile"), cifar("ifnd", "glofnd")),
    Entry("3.1b", "High score and variance", "[31] SRNS", "analogy",
          "noted at visits by the key, in a memory of its own, also over a queue; that they vary less is a claim to test",
          "memory T·D and T·M; B·M·D a step", ("ScoreHistory",), cifar("srns")),
    Entry("3.1c", "Moderate difficulty", "[90] ASA", "reconstruction",
          "a second-hand rule; the course of its gap was not found", "B·K top-k", ("GapSubset",), cifar("gap")),
    Entry("3.1c", "Below the positive", "[90] ASA", "faithful",
          "the survey's wording, which the paper's rule prefers but does not enforce", "B·K", ("AbovePositive",),
          cifar("below_positive")),
    Entry("3.1d", "Clusters, by and by", "[88] IFND arXiv:2106.03719", "faithful",
          "about images itself; confidence, cluster numbers and schedule were not found and are ours",
          "k-means T·C·D an epoch", ("SameCluster", "MultiPositive"),
          cifar("ifnd", "ifnd_attract") + large("imagenet/ifnd")),
    Entry("3.1e", "Soft clusters", "[89] GDCL", "analogy", "weights for draws, fixed k-means centres for trained ones",
          "k-means T·C·D an epoch; (B+K)·C·D", ("SoftClusterWeight",), cifar("gdcl")),
    # 3.2 to 4
    Entry("3.2a", "Easy to hard", "[92] CuCo", "faithful", "contrastive on graphs there; the early stop is left out",
          "B·K sort", ("HardnessBand", "schedules.Power"), cifar("curriculum")),
    Entry("3.2a", "Pacing", "[91]", "analogy", "negatives for training examples; hard first is the control", "B·K sort",
          ("HardnessBand", "schedules.Growth"), cifar("curriculum_hard_first")),
    Entry("3.3a", "The number as a knob", "–", "faithful", "count of every selector, size of queue or batch",
          "B·K draws", ("UniformSubset",), cifar("uniform")),
    Entry("3.3b", "Which negatives matter", "[93] arXiv:2010.06682", "faithful", "about images itself; see row 1.3d",
          "B·K sort", ("HardnessBand",), cifar("hardest_5_percent")),
    Entry("3.3c", "Cosine contrastive loss", "[94] SimpleX", "faithful",
          "the same loss on unit embeddings; margin and weight are ours", ROW_LOSS, ("CosineContrastive",),
          cifar("simplex")),
    Entry("3.3d", "How many are needed", "[95] arXiv:2105.13003", "reconstruction",
          "weights of the cases and course of K were not found; ours in operational form", "B·K draws",
          ("AdaptiveCount",), cifar("adaptive_count")),
    Entry("3.4a", "Debiased", "[96] DCL arXiv:2007.00224", "faithful",
          "about images itself; wants candidates drawn alike from the data", "B·K·D, no table", ("Debiased",),
          cifar("debiased")),
    Entry("3.4b", "Inverse propensity", "[97] CLRec, [14]", "analogy",
          "no exposure; the identity is exact, and its correction undoes a known law", "B·K",
          ("SamplingCorrection", "SoftmaxSubset"), cifar("softmax_corrected")),
    Entry("3.5a", "All shifts by Fourier", "[98]", "not applicable",
          "augmentations other than cyclic shifts form no such group; nothing is built for shifts of feature maps"),
    Entry("3.5b", "Whole data", "[99] EHCF", "analogy", "the algebra is exact, images for users and items",
          SECOND_MOMENT, ("Square", "losses.KeyMoments"), cifar("square")),
    Entry("3.5c", "All negatives, rewritten", "[100] NS-KGE", "analogy", "the algebra is exact, images for triplets",
          SECOND_MOMENT, ("Square",), cifar("square")),
    Entry("3.5d", "Sampling is a means", "–", "faithful", "a claim to test: all against sampled at equal time",
          "B·D² against B·K·D", ("Square", "UniformSubset"), cifar("square", "uniform")),
    Entry("4", "First used to speed up skip-gram", "[3] word2vec", "not applicable", "history, nothing to build"),
    # Beyond the survey: eliminate and attract
    Entry(BEYOND, "False negative cancellation", "FNC arXiv:2011.11765", "faithful",
          "detection of the official code; only the query is an anchor, not its support views",
          "one more pass of the encoder and B·K·D a view", ("SupportViews", "MultiPositive"),
          cifar("fnc") + large("imagenet/fnc")),
    Entry(BEYOND, "FNC by past keys", "FNC arXiv:2011.11765", "analogy", "keys of earlier epochs for further views",
          "memory T·D a key", ("SupportMemory",), cifar("fnc_memory")),
    Entry(BEYOND, "Global false negatives", "GloFND arXiv:2502.20612", "faithful",
          "as released; candidates are the method's", "memory 4·T; B·K", ("GlobalQuantile",),
          cifar("glofnd") + large("imagenet100/glofnd")),
    Entry(BEYOND, "SINCERE", "arXiv:2309.14277", "faithful",
          "with labels an oracle; with other stages what they attract", ROW_LOSS, ("Sincere",), cifar("sincere")),
    # select and weigh
    Entry(BEYOND, "Ring of conditional negatives", "arXiv:2010.02037", "reconstruction",
          "percentiles and their course were not found and are ours", "B·K sort", ("HardnessBand",), cifar("ring")),
    Entry(BEYOND, "Hard negatives weighted, debiased", "HCL arXiv:2010.04592", "faithful",
          "weights carry gradient as in the code; wants candidates drawn alike", "B·K·D twice, no table",
          ("HardWeighted",), cifar("hcl")),
    Entry(BEYOND, "Hard negatives weighted", "HCL arXiv:2010.04592, RotatE", "faithful",
          "constant weights are RotatE's, others HCL's without debiasing", "B·K", ("HardnessWeight",),
          cifar("self_adversarial")),
    Entry(BEYOND, "Gaussian weights", "ADNCE arXiv:2310.11048", "faithful", "as the code, not as its README", "B·K",
          ("GaussianWeight",), cifar("adnce")),
    Entry(BEYOND, "Strength apart from number", "EqCo arXiv:2010.01929", "reconstruction",
          "from memory, not verified against the paper", "B·K", ("FixedMass",), cifar("eqco")),
    # synthesize
    Entry(BEYOND, "Six kinds of synthetic negatives", "SynCo arXiv:2410.02401", "faithful",
          "formulas and defaults of the code, its crossed switches uncrossed", "B·K top-k; B·M·D for the noisy kind",
          ("SynCo",), cifar("synco") + large("imagenet/synco")),
    # losses
    Entry(BEYOND, "Decoupled", "arXiv:2110.06848", "faithful", "no positive in the denominator", "B·K·D, no table",
          ("Decoupled",), cifar("decoupled") + large("imagenet/decoupled")),
    Entry(BEYOND, "Decoupled, weighted", "arXiv:2110.06848", "faithful",
          "weights shared out among the queries of all processes", "B·K·D, no table", ("DecoupledWeighted",),
          cifar("decoupled_weighted")),
    Entry(BEYOND, "Dual temperature", "arXiv:2203.17248", "faithful", "a second temperature weighs the queries",
          "B·K·D twice, no table", ("DualTemperature",), cifar("dual_temperature")),
    Entry(BEYOND, "Robust InfoNCE", "RINCE arXiv:2201.04309", "faithful", "for positives that may be wrong",
          "B·K·D, no table", ("RINCE",), cifar("rince") + large("imagenet/rince")),
    Entry(BEYOND, "Sigmoid", "SigLIP arXiv:2303.15343", "analogy",
          "two views for image and text; scale and bias do not learn", ROW_LOSS, ("Sigmoid",), cifar("sigmoid")),
    Entry(BEYOND, "Spectral", "HaoChen et al. 2021", "analogy", "unit vectors for vectors of bounded length",
          SECOND_MOMENT, ("Spectral",), cifar("spectral")),
    Entry(BEYOND, "Alignment and uniformity", "arXiv:2005.10242", "faithful",
          "uniformity over queries and candidates, in the paper within each view", "B·K·D, no table", ("AlignUniform",),
          cifar("align_uniform") + large("imagenet/align_uniform", "imagenet100/align_uniform")),
    Entry(BEYOND, "Moving averages per image", "SogCLR arXiv:2202.12387", "faithful",
          "gradient and averages of the code; the value shown is what the gradient descends", "B·K·D, memory 10·T",
          ("SogCLR",), cifar("sogclr")),
    # positives, batches and views
    Entry(BEYOND, "Neighbours as queries", "NNCLR arXiv:2104.14548", "faithful",
          "SimCLR alone, without predictor; both views in queue and batch; an image is no neighbour of itself", "B·Q·D for a queue of Q",
          ("NeighbourPositive",), cifar("nnclr")),
    Entry(BEYOND, "Neighbours as positives of MoCo", "NNCLR arXiv:2104.14548", "analogy",
          "keys carry no gradient: the positive is replaced, not the query", "B·Q·D for a queue of Q",
          ("NeighbourPositive",), cifar("nnclr_moco")),
    Entry(BEYOND, "Batches by walks on a graph", "BatchSampler arXiv:2306.03355", "faithful",
          "a graph per epoch for one per 100 steps; each image once per epoch unless told otherwise",
          "memory 8·T·k; a pass over the images a graph", ("data.batches.GraphWalkBatches",), cifar("batch_sampler")),
    Entry(BEYOND, "Mixed queries", "i-Mix arXiv:2010.08887", "faithful",
          "older keys of an image are no candidates of it", "two rows a query", ("mixing.IMix",), cifar("i_mix")),
    Entry(BEYOND, "Mixed queries beside plain ones", "Un-Mix arXiv:2003.05438", "faithful", "as the code",
          "one more pass of the encoder, three rows a query", ("mixing.UnMix",), cifar("un_mix")),
    Entry(BEYOND, "Adversarial views", "CLAE arXiv:2010.12050", "faithful",
          "one step in input space, batch norm of its own; pictures are not clipped", "two more passes of the encoder",
          ("adversary.CLAE",), cifar("clae_views")),
)
# fmt: on
