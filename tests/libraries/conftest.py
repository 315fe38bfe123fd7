"""Layers of other libraries; ``make test-libraries`` runs them in an environment of their own."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
