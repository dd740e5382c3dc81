from __future__ import annotations

import pytest
from report_material import make_report

from compresskit.report import Report


@pytest.fixture
def report() -> Report:
    return make_report()
