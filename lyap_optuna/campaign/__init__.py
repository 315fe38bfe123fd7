"""Campaigns: many trials on many workers, from one validated file, with nothing lost."""

from lyap_optuna._extras import how_to_install

try:
    import psutil as _psutil  # noqa: F401
    import pydantic as _pydantic  # noqa: F401
    import tenacity as _tenacity  # noqa: F401
except ImportError as error:
    raise ImportError(f"Campaigns need {error.name}: {how_to_install('campaign')}") from error

from lyap_optuna.campaign._config import CampaignConfig, CampaignFileError, load_config
from lyap_optuna.campaign._configurations import run_configurations
from lyap_optuna.campaign._recovery import previous_attempt
from lyap_optuna.campaign._runner import CampaignResult, View, open_study, run_campaign
from lyap_optuna.campaign._sole import CampaignError
from lyap_optuna.campaign._status import CampaignStatus, campaign_status, epochs_saved
from lyap_optuna.campaign._storage import RetryingStorage, open_storage, storage_of

__all__ = [
    "CampaignConfig",
    "CampaignError",
    "CampaignFileError",
    "CampaignResult",
    "CampaignStatus",
    "RetryingStorage",
    "View",
    "campaign_status",
    "epochs_saved",
    "load_config",
    "open_storage",
    "open_study",
    "previous_attempt",
    "run_campaign",
    "run_configurations",
    "storage_of",
]
