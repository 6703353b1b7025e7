"""Tests on a real kernel."""

import pytest

# What fails in their helpers is to be told as well as what fails in the tests.
pytest.register_assert_rewrite("tests.kernel.lab", "tests.kernel.matrix")
