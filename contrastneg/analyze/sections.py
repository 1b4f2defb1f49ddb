"""The sections of an analysis: what each measures, what it needs, how it is drawn. A new one is a new entry of ``SECTIONS``."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from contrastneg.analyze import charts, columns, courses, laws, layers, measures, samplers
from contrastneg.analyze.charts import Drawing
from contrastneg.analyze.material import CHECKPOINTS, CLASSES, COLUMNS, HIERARCHY, LABELS, LAYERS, Material
from contrastneg.analyze.tables import Tables
from contrastneg.pseudolabels import FEWER_PER_CLUSTER, MANY_ROWS, ROWS_PER_CLUSTER


@dataclass(frozen=True)
class Section:
    """A group of measures that answer one question."""

    title: str
    measure: Callable[[Material], dict[str, pd.DataFrame]]
    """Gives the tables."""
    draw: Callable[[Tables], list[Drawing]]
    """Gives the plots, each with its caption."""
    definition: str
    """What is measured, in a sentence or two."""
    needs: frozenset[str] = frozenset()
    """Some of the words of :mod:`contrastneg.analyze.material`."""


SECTIONS: dict[str, Section] = {
    "hardness": Section(
        "Whose class the hardest negatives are of",
        measures.measure_hardness,
        charts.of_hardness,
        "Each query's candidates are ranked by cosine and cut at 0.1 % and 5 %, edges that Cai et al. (arXiv:2010.06682) chose "
        "and no measured shares. Rate: share of a bin that is of the query's class; recall: share of all candidates of the "
        "query's class that lie in the bin.",
        frozenset({CLASSES}),
    ),
    "gradient": Section(
        "Where the gradient goes",
        measures.measure_gradient,
        charts.of_gradient,
        "Share of each bin in the softmax over candidates, which is its share of InfoNCE's gradient on negatives; effective "
        "number: e to the entropy of that softmax.",
    ),
    "similarity": Section(
        "Similarity of the two kinds of pairs",
        measures.measure_similarity,
        charts.of_similarity,
        "Histograms of the cosines of pairs (query, candidate) of one class and of two.",
        frozenset({CLASSES}),
    ),
    "ranks": Section(
        "Rank and class",
        measures.measure_ranks,
        charts.of_ranks,
        "Share of the candidates of a rank that are of the query's class; rank 1 is the most similar. The band between 2 and 1.1 "
        "times the base rate holds candidates that are similar and rarely false.",
        frozenset({CLASSES}),
    ),
    "confusion": Section(
        "Which classes are hard for which",
        measures.measure_confusion,
        charts.of_confusion,
        "Classes of the hardest 5 % of the candidates, by class of the query. On the diagonal are false negatives.",
        frozenset({LABELS}),
    ),
    "consistency": Section(
        "Images that are hard for many",
        measures.measure_consistency,
        charts.of_consistency,
        "For how many queries each image is among the hardest 5 %, beside what queries that choose at random would give (a "
        "binomial law). Over-dispersion: variance over that of the law, 1 by chance.",
    ),
    "hubs": Section(
        "Hubs",
        measures.measure_hubs,
        charts.of_hubs,
        "How often each image is among the 20 nearest of others; skewness above 1 says that there are hubs.",
    ),
    "popularity": Section(
        "Popular classes",
        measures.measure_popularity,
        charts.of_popularity,
        "Correlation over images of the mean cosine that they receive with the logarithm of the size of their class, and of their "
        "cluster by k-means: what CLRec (arXiv:2005.12964) would correct.",
    ),
    "proxy": Section(
        "How hard the task is",
        measures.measure_proxy,
        charts.of_proxy,
        "Proxy accuracy: how often the positive is more similar than all of K random negatives. Matching probability: softmax "
        "over the positive and all candidates, averaged rank by rank (the curves of MoCHi, arXiv:2010.01028).",
    ),
    "counts": Section(
        "How many negatives",
        measures.measure_counts,
        charts.of_counts,
        "With K random negatives: of other classes a hard one is among them (more similar than the positive), none is false, share "
        "of the gradient on false ones. The best number K* and v(K) are reconstructions after arXiv:2105.13003, whose own function was "
        "not found.",
        frozenset({CLASSES}),
    ),
    "agreement": Section(
        "The gradient of few negatives",
        measures.measure_agreement,
        charts.of_agreement,
        "Cosine of the gradient with K random negatives and with all of them, and its variance over draws relative to the "
        "squared length of the latter.",
    ),
    "estimates": Section(
        "The negative term, estimated and true",
        measures.measure_estimates,
        charts.of_estimates,
        "Mean over queries of |g / g* - 1| for the estimate g of the mean negative term and the truth g* over candidates of "
        "other classes (hard-weighted: under the same weights), and the cosine of their gradients.",
        frozenset({LABELS}),
    ),
    "detectors": Section(
        "Detectors of false negatives",
        measures.measure_detectors,
        charts.of_detectors,
        "Precision and recall of what a detector finds, against the labels, which it does not see; hard lost: share of the "
        "hardest 5 % of other classes that is lost with it. Mutual neighbours are looked for "
        f"among at most {laws.IN_GRAPH:,} images. K-means is fitted to at most {ROWS_PER_CLUSTER:,} images a cluster and assigns "
        f"all; of more than {MANY_ROWS:,} images it is fitted to at most so many, or to at most {FEWER_PER_CLUSTER} a cluster "
        "where that is more, and there is none into two and four times the clusters.",
        frozenset({LABELS}),
    ),
    "samplers": Section(
        "Sampler cards",
        samplers.measure_samplers,
        samplers.draw_samplers,
        "What each sampler would offer a query of this encoder: stages of the catalogue in sizes that suit the data, alone and combined, "
        "run as at the end of training (--samplers adds recipes, runs and stages of your own).",
    ),
    "mixes": Section(
        "Negatives that are made",
        samplers.measure_mixes,
        samplers.draw_mixes,
        "Mixes of two of the query's hardest candidates, and of one with the query, as MoCHi makes them (arXiv:2010.01028), beside "
        "their parents.",
    ),
    "exponents": Section(
        "Draws by popularity",
        laws.measure_exponents,
        laws.draw_exponents,
        "Negatives drawn by a power of the popularity of an image: size of its class or cluster, times that it is among the hardest 5 % "
        f"of queries, and times that it is among the {laws.NEIGHBOURS} nearest of all images (left out above {laws.IN_GRAPH:,}).",
        frozenset({CLASSES}),
    ),
    "draws": Section(
        "Draws by similarity",
        laws.measure_draws,
        laws.draw_draws,
        "Negatives drawn by the softmax of cosines to the power a (MCNS, arXiv:2005.09863), 0 being uniform: how well weighted draws "
        "estimate the sum over all candidates, and how many moves a Metropolis-Hastings chain needs to forget where it began.",
    ),
    "graph": Section(
        "The graph of nearest images",
        laws.measure_graph,
        laws.draw_graph,
        "Share of the query's class by rank of personalised PageRank (PinSage, arXiv:1806.01973) and by number of edges from the query. "
        f"In a graph of at most {laws.IN_GRAPH:,} images.",
        frozenset({CLASSES}),
    ),
    "margins": Section(
        "A margin in the place of a temperature",
        laws.measure_margins,
        laws.draw_margins,
        "Negatives of the cosine contrastive loss (SimpleX, arXiv:2109.12613) act above the margin m and not below.",
        frozenset({CLASSES}),
    ),
    "metadata": Section(
        "What metadata say",
        columns.measure_metadata,
        columns.draw_metadata,
        "Candidates that share a value of a column with the query: how many of them are of its class, how similar they are, and "
        "what share of InfoNCE's gradient on negatives they have.",
        frozenset({COLUMNS}),
    ),
    "hierarchy": Section(
        "Class hierarchy",
        columns.measure_hierarchy,
        columns.draw_hierarchy,
        "How near the classes of true negatives are to the query's, where columns of metadata tell which classes are kin, by hardness "
        "(arXiv:2010.06682).",
        frozenset({HIERARCHY}),
    ),
    "layers": Section(
        "Backbone and projector",
        layers.measure_layers,
        layers.draw_layers,
        "Key numbers of the sections above for either layer: same class by bin of the ranking, share of the gradient on the hardest 5 %, "
        f"the reconstruction K*, and one detector of each kind. Asked about are at most {courses.COMPARED} images, fewer than the sections "
        "above may ask about, so numbers differ a little from theirs. All other sections are about the projector.",
        frozenset({LABELS, LAYERS}),
    ),
    "checkpoints": Section(
        "The same hard negatives in other encoders",
        measures.measure_checkpoints,
        charts.of_checkpoints,
        "Share of pairs that are among the hardest 5 % of the query under exactly e of the encoders, over that of encoders that "
        "have nothing to do with each other.",
        frozenset({CHECKPOINTS}),
    ),
    "course": Section(
        "What changes from encoder to encoder",
        courses.measure_course,
        courses.draw_course,
        "Curves and detectors of the sections above, under each of the encoders: by optimizer step where all are of one run "
        "and those are known, else in the order given, this one last.",
        frozenset({CHECKPOINTS}),
    ),
    "variance": Section(
        "Scores that vary",
        courses.measure_variance,
        courses.draw_variance,
        "Whether scores of false negatives vary less over training than those of true ones that are as high, as SRNS has it "
        "(arXiv:2009.03376). Score: logistic function of the cosine less the positive's, over the temperature.",
        frozenset({CHECKPOINTS, LABELS}),
    ),
    "curricula": Section(
        "Curricula",
        courses.measure_curricula,
        courses.draw_curricula,
        "What orders of presentation would offer along the encoders (CuCo, IJCAI 2021): the easiest first, the hardest first, any, all.",
        frozenset({CHECKPOINTS, CLASSES}),
    ),
}
