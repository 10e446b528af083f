"""Conformance suites: a direction, estimator, rule, method, aggregator, attack or task of your own checks itself.

One function a kind runs all checks and raises an `AssertionError` with the promise that was broken and how to see it::

    from gradless.testing import check_rule

    def test_my_rule():
        check_rule(my_rule(0.9))

or pytest shows each check as a test of its own::

    from gradless.testing import direction_checks

    @pytest.mark.parametrize("check", direction_checks())
    def test_my_directions(check):
        check(my_directions())

What a part claims beyond the contract (a rule that does not move along with its rows, an attack that sees nothing) are
arguments. Nothing here needs pytest. gradless checks its own parts with these suites.
"""

from gradless.testing.aggregators import aggregator_checks as aggregator_checks
from gradless.testing.aggregators import check_aggregator as check_aggregator
from gradless.testing.attacks import attack_checks as attack_checks
from gradless.testing.attacks import check_attack as check_attack
from gradless.testing.checks import ALARM as ALARM
from gradless.testing.checks import Check as Check
from gradless.testing.directions import check_direction as check_direction
from gradless.testing.directions import direction_checks as direction_checks
from gradless.testing.estimators import check_estimator as check_estimator
from gradless.testing.estimators import estimator_checks as estimator_checks
from gradless.testing.methods import check_method as check_method
from gradless.testing.methods import method_checks as method_checks
from gradless.testing.mixes import check_mix as check_mix
from gradless.testing.mixes import mix_checks as mix_checks
from gradless.testing.problems import Model as Model
from gradless.testing.rules import check_rule as check_rule
from gradless.testing.rules import rule_checks as rule_checks
from gradless.testing.tasks import check_task as check_task
from gradless.testing.tasks import task_checks as task_checks
