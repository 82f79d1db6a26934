"""Gradient inversion: reconstructs data from the updates that a server receives.

    attack = inverting_gradients(steps=2000)
    attack.reconstruct(updates, model, knowledge=knowledge, generator=generator)

The attacks use the shared updates and what ``Knowledge`` declares, never the truth. An invalid
setting raises a ConfigError that names it.
"""

from .active.arming import ActiveAttack
from .active.imprint import ImprintAttack
from .active.inconsistent_models import InconsistentModelsAttack
from .active.trap_weights import TrapWeightsAttack
from .analytic import AnalyticAttack, linear_input
from .attack import GradientInversion
from .base import Attack, check_level
from .cocktail_party import CocktailPartyAttack
from .decoder.learned import LearnedAttack
from .decoder.learning import DecoderFactory
from .decoder.network import ConvDecoder
from .gradient_transform import Clip, Noise, Prune, Quantise, Transform
from .knowledge import Knowledge, LocalTraining, PublicData, Secrets
from .levels import GRANTS, LEVELS, check_known_levels
from .loss import CROSS_ENTROPY, Loss, loss_of
from .outputs import logits_of
from .presets import (
    analytic,
    cocktail_party,
    dlg,
    ggl,
    gradinversion,
    grnn,
    idlg,
    imprint,
    inconsistent_models,
    inverting_gradients,
    learned,
    spear,
    surrogate,
    tableak,
    trap_weights,
)
from .prior import batch_norm_statistics, group_consistency, squared_norm, total_variation
from .spear import SpearAttack
from .text.dager import DagerAttack
from .tokens import TokenRecovery, embedding_tokens
from .unknowns.generator import GeneratorWeights, Latent
from .unknowns.pixels import Parametrisation, Pixels
from .unknowns.table import TableRows

__all__ = [
    "CROSS_ENTROPY",
    "GRANTS",
    "LEVELS",
    "ActiveAttack",
    "AnalyticAttack",
    "Attack",
    "Clip",
    "CocktailPartyAttack",
    "ConvDecoder",
    "DagerAttack",
    "DecoderFactory",
    "GeneratorWeights",
    "GradientInversion",
    "ImprintAttack",
    "InconsistentModelsAttack",
    "Knowledge",
    "Latent",
    "LearnedAttack",
    "LocalTraining",
    "Loss",
    "Noise",
    "Parametrisation",
    "Pixels",
    "Prune",
    "PublicData",
    "Quantise",
    "Secrets",
    "SpearAttack",
    "TableRows",
    "TokenRecovery",
    "Transform",
    "TrapWeightsAttack",
    "analytic",
    "batch_norm_statistics",
    "check_known_levels",
    "check_level",
    "cocktail_party",
    "dlg",
    "embedding_tokens",
    "ggl",
    "gradinversion",
    "grnn",
    "group_consistency",
    "idlg",
    "imprint",
    "inconsistent_models",
    "inverting_gradients",
    "learned",
    "linear_input",
    "logits_of",
    "loss_of",
    "spear",
    "squared_norm",
    "surrogate",
    "tableak",
    "total_variation",
    "trap_weights",
]
