"""Wrong labels: the numbers against the estimators, the cut where the truth is known."""

import numpy as np
import pytest
import torch
from regressions import Exact
from test_estimators import make_trace, random_trace
from torch import nn

import probelib
from probelib.estimators.guesses import guess_costs
from probelib.estimators.label_issues import SCORES, _between_groups

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, N = 10, 600


def trained(share, epochs, localization, seed=1, spread=0.7):
    """A small network that was trained so long on blobs with a share of wrong labels."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, CLASSES, N)
    x = rng.normal(size=(CLASSES, 32))[true] + spread * rng.normal(size=(N, 32))
    bad = rng.random(N) < share
    label = np.where(bad, (true + rng.integers(1, CLASSES, N)) % CLASSES, true)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(label)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(N).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    posterior = probelib.LocalPosterior(
        model, probelib.cross_entropy, (x, y), n_beta=10.0, localization=localization
    )
    return posterior, bad


def probed(share, epochs, **of_data):
    """Chains around that network, and the wrong labels."""
    posterior, bad = trained(share, epochs, 30.0, **of_data)
    trace = probelib.sample(
        posterior, sampler=probelib.SGLD(4e-3, 100), chains=4, draws=40, thin=10, burn_in=150,
        progress=False,
    )  # fmt: skip
    return trace, bad


BEFORE, AFTER = 4, 150  # epochs: wrong labels are not fitted yet; they are


@pytest.fixture(scope="module")
def networks():
    """Traces and their wrong labels, by share and epochs; made when asked for."""
    made = {}

    def of(share, epochs):
        if (share, epochs) not in made:
            made[share, epochs] = probed(share, epochs)
        return made[share, epochs]

    return of


def auroc(score, bad):
    wins = score[bad][:, None] > score[~bad]
    return wins.mean()


@pytest.mark.parametrize("epochs", [BEFORE, AFTER])
def test_few_labels_of_clean_data_are_flagged(networks, epochs):
    trace, _ = networks(0, epochs)
    assert probelib.label_issues(trace).flagged.mean() <= 0.02


@pytest.mark.parametrize(
    ("share", "epochs", "precision", "recall"),
    [
        (0.02, BEFORE, 0.8, 0.8),
        (0.1, BEFORE, 0.9, 0.85),
        (0.4, BEFORE, 0.9, 0.85),
    ],
)
def test_flags_are_mostly_right_whatever_the_share(networks, share, epochs, precision, recall):
    trace, bad = networks(share, epochs)
    table = probelib.label_issues(trace)
    flagged = table.flagged.values
    assert not flagged.any() or bad[flagged].mean() >= precision
    assert flagged[bad].mean() >= recall


@pytest.mark.parametrize(("share", "least"), [(0.02, 0.97), (0.1, 0.97), (0.4, 0.9)])
def test_the_score_ranks_memorized_labels_first_and_hardly_any_flag_is_wrong(
    networks, share, least
):
    """As the docstring says, few of them are flagged: each is below what guessing costs."""
    trace, bad = networks(share, AFTER)
    table = probelib.label_issues(trace)
    assert auroc(table.score.values, bad) > least
    flagged = table.flagged.values
    assert flagged.any()
    assert bad[flagged].mean() >= 0.9


def test_a_network_that_fits_its_labels_is_said_to(networks, recwarn):
    before, _ = networks(0.1, BEFORE)
    table = probelib.label_issues(before)
    assert not [warning for warning in recwarn if "fits" in str(warning.message)]
    assert table.attrs["fitted"] < 0.95
    after, bad = networks(0.1, AFTER)
    with pytest.warns(UserWarning, match=r"the network fits \d+.\d % of the labels"):
        table = probelib.label_issues(after)
    exact = float((after.init_loss.values < guess_costs(after.label.values, np.log(10))).mean())
    assert table.attrs["fitted"] == pytest.approx(exact, abs=0.01)
    assert table.attrs["fitted"] >= 0.99
    assert table.flagged[bad].mean() < 0.5
    recwarn.clear()
    probelib.label_issues(after, score="loss_gain")  # whose cut knows no guessing
    assert not [warning for warning in recwarn if "fits" in str(warning.message)]


def test_the_default_holds_where_the_gain_is_reversed(networks):
    trace, bad = networks(0.1, BEFORE)
    by = {name: auroc(probelib.label_issues(trace, name).score.values, bad) for name in SCORES}
    assert by["mean_loss"] > 0.97
    assert by["loss_gain"] < 0.6
    trace, bad = networks(0.1, AFTER)
    assert auroc(probelib.label_issues(trace).score.values, bad) > 0.95


def test_diagnostics_notes_samples_that_are_not_fitted(networks):
    trace, bad = networks(0.1, BEFORE)
    found = probelib.diagnostics(trace)
    assert found.not_fitted == pytest.approx(bad.mean(), abs=0.03)
    assert f"{found.not_fitted:.1%} of {N} samples are not fitted" in str(found)
    bare = trace.copy()
    del bare.attrs["guessing_loss"]
    assert np.isnan(probelib.diagnostics(bare).not_fitted)
    assert probelib.diagnostics(bare).notes == ()
    fitted = probelib.diagnostics(networks(0, AFTER)[0])
    assert fitted.not_fitted == 0
    assert "  !" not in str(fitted)


def test_a_note_is_no_verdict(networks):
    trace, _ = networks(0.1, BEFORE)
    lenient = trace.assign_attrs(guessing_loss=1e3)  # nothing is above that
    noted, quiet = probelib.diagnostics(trace), probelib.diagnostics(lenient)
    assert noted.notes
    assert not quiet.notes
    assert [f.good for f in noted.findings] == [f.good for f in quiet.findings]


# --- the numbers ---


def test_the_numbers_are_those_of_the_estimators():
    trace = random_trace(n=40, draws=200, label=np.arange(40) % 3).assign_coords(
        sample_id=("sample", np.arange(40) + 100)
    )
    table = probelib.label_issues(trace)
    assert list(table.index) == list(range(100, 140))
    assert table.index.name == "sample_id"
    gain, variance = probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()
    np.testing.assert_allclose(table.loss_gain, gain, rtol=1e-12)
    np.testing.assert_allclose(table.variance, variance, rtol=1e-6)
    np.testing.assert_array_equal(table.init_loss, trace.init_loss)
    np.testing.assert_array_equal(table.label, trace.label)
    loss = trace.loss.values.astype(np.float64)
    np.testing.assert_allclose(table.mean_loss, loss.mean((0, 1)), rtol=1e-12)
    np.testing.assert_array_equal(table.score, table.mean_loss)
    np.testing.assert_allclose(table.mcse, gain.mcse, rtol=1e-12)
    assert table.attrs["score"] == "mean_loss"
    assert table.attrs["units"] == "nats"
    for name, error in {"loss_gain": gain.mcse, "variance": variance.mcse, "init_loss": 0}.items():
        other = probelib.label_issues(trace, name)
        np.testing.assert_array_equal(other.score, other[name])
        np.testing.assert_allclose(other.mcse, np.broadcast_to(error, 40))


def test_weighted_draws_count_by_their_weights():
    exact = Exact(n=40)
    trace = probelib.importance_sample(exact.posterior, draws=400, progress=False)
    table = probelib.label_issues(trace)
    gain, variance = probelib.loss_gain(trace), probelib.loss_kernel(trace).diagonal()
    np.testing.assert_allclose(table.loss_gain, gain, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(table.mcse, gain.mcse, rtol=1e-9)


# --- the cut ---


def separated(error=0.01, draws=50):
    """Ninety right labels, ten wrong ones; every draw of a loss is off by about ``error``."""
    rng = np.random.default_rng(0)
    mean = np.append(rng.lognormal(-2, 0.5, 90), rng.lognormal(1.5, 0.1, 10))
    loss = mean + error * draws**0.5 * rng.normal(size=(2, draws, 100))
    trace = make_trace(loss, mean, label=np.arange(100) % 2)
    return trace.assign_attrs(guessing_loss=np.log(2)), np.arange(100) >= 90


def test_weighted_draws_know_what_guessing_costs_and_flag_as_chains_do(networks):
    trace, bad = networks(0.1, BEFORE)
    posterior, _ = trained(0.1, BEFORE, localization=300.0)
    weighted = probelib.importance_sample(posterior, 60, progress=False)
    assert weighted.attrs["guessing_loss"] == pytest.approx(trace.attrs["guessing_loss"], abs=1e-3)
    table = probelib.label_issues(weighted)
    assert table.flagged[bad].mean() > 0.7
    assert table.flagged[~bad].mean() < 0.02
    x, y = posterior.data.batch(np.arange(N))
    sets = probelib.importance_sample(
        posterior, 4, observe={"all": (x, y), "few": (x[:50], y[:50])}, progress=False
    )
    assert sets["all"].attrs["guessing_loss"] == weighted.attrs["guessing_loss"]
    assert sets["few"].attrs["guessing_loss"] != weighted.attrs["guessing_loss"]


def test_what_its_error_may_have_put_above_the_cut_is_not_flagged():
    trace, bad = separated()
    table = probelib.label_issues(trace)
    np.testing.assert_array_equal(table.flagged, bad)
    trace.loss[..., 99] += 15 * (np.arange(50) % 25 == 0) * 25 - 15  # of the same mean
    table = probelib.label_issues(trace)
    np.testing.assert_array_equal(table.flagged, bad & (np.arange(100) < 99))
    assert table.attrs["uncertain"] == 1
    one = probelib.label_issues(separated()[0].isel(chain=[0], draw=slice(6)))
    assert np.isinf(one.mcse).all()
    assert not one.flagged.any()


def test_guessing_costs_each_label_its_own():
    labels = np.repeat([0, 1], [90, 10])
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    np.testing.assert_allclose(
        guess_costs(labels, entropy), -np.log(np.repeat([0.9, 0.1], [90, 10]))
    )
    np.testing.assert_array_equal(guess_costs(labels, 2.3), np.full(100, 2.3))  # of other labels


def test_a_label_that_is_likelier_than_a_guess_is_not_flagged():
    trace, _ = separated()
    table = probelib.label_issues(trace.assign(loss=trace.loss / 100))
    assert not table.flagged.any()
    assert (table.cut >= np.log(2) - 1e-9).all()


def test_two_groups_are_found_where_there_are_two():
    rng = np.random.default_rng(1)
    two = np.append(rng.normal(0, 1, 800), rng.normal(6, 0.5, 200))
    assert _between_groups(two) == pytest.approx(4.2, abs=0.4)  # equally likely by the true law
    assert _between_groups(rng.normal(size=1000)) is None
    assert _between_groups(np.zeros(100)) is None


@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_regression_has_few_false_flags_and_finds_outliers_in_any_unit(unit):
    rng = np.random.default_rng(2)
    residual = rng.normal(size=500)
    residual[:5] = 40
    loss = unit * residual**2 / 2 * (1 + 0.01 * rng.normal(size=(2, 60, 500)))
    trace = make_trace(loss, loss[0, 0]).assign_attrs(guessing_loss=unit * 2.0)
    np.testing.assert_array_equal(probelib.label_issues(trace).flagged, np.arange(500) < 5)
    assert not probelib.label_issues(trace.isel(sample=slice(5, None)), "loss_gain").flagged.any()


def test_losses_below_zero_have_a_cut_of_their_own():
    rng = np.random.default_rng(3)
    mean = np.append(rng.normal(-5, 1, 200), 20)
    trace = make_trace(mean + 0.01 * rng.normal(size=(2, 60, 201)), mean, label=np.zeros(201, int))
    np.testing.assert_array_equal(
        probelib.label_issues(trace.assign_attrs(guessing_loss=-3.0)).flagged, np.arange(201) == 200
    )


def test_what_cannot_be_scored_is_refused():
    trace = random_trace()
    with pytest.raises(ValueError, match="score is 'gain'; choose 'mean_loss', 'init_loss'"):
        probelib.label_issues(trace, "gain")
    bare = trace.drop_vars("init_loss")
    assert np.isnan(probelib.label_issues(bare).loss_gain).all()
    with pytest.raises(ValueError, match=r"trace has no l_i\(w\*\) of sample 0"):
        probelib.label_issues(bare, "loss_gain")
    lost = trace.assign_attrs(diverged={"1": {"step": 3, "draws": 2}})
    with pytest.raises(ValueError, match="trace has chain 1, which diverged"):
        probelib.label_issues(lost)
