"""A trace that was rearranged gives the same numbers, or one sentence: dimensions go by name."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import probelib
from probelib import contract

CHAINS, DRAWS, SAMPLES = 3, 24, 6


def made() -> xr.Dataset:
    """A trace whose axes cannot be taken for each other: slow chains that lie apart."""
    rng = np.random.default_rng(0)
    shape = CHAINS, DRAWS, SAMPLES
    steps = rng.normal(size=shape) + rng.normal(size=(CHAINS, DRAWS, 1))
    loss = 3 + 0.1 * steps.cumsum(1) + 0.3 * rng.normal(size=(CHAINS, 1, SAMPLES))
    return xr.Dataset(
        {
            "loss": (("chain", "draw", "sample"), loss.astype(np.float32)),
            "init_loss": ("sample", rng.random(SAMPLES).astype(np.float32)),
            "sampling_loss": (("chain", "step"), rng.random((CHAINS, 2 * DRAWS), np.float32)),
            "distance": (("chain", "draw"), rng.random((CHAINS, DRAWS), np.float32)),
        },
        coords={
            "chain": np.arange(CHAINS),
            "sample_id": ("sample", np.arange(10, 10 + SAMPLES)),
            "label": ("sample", np.array([0, 1, 2, 0, 1, 2])),
        },
        attrs={
            "config": {
                "n_beta": 5.0, "localization": 2.0, "step_size": 1e-3, "n_parameters": 4,
                "sampler": "SGLD", "burn_in": 0, "thin": 2, "n_samples": SAMPLES,
            },
            "diverged": {},
        },
    )  # fmt: skip


def ours(trace: xr.Dataset) -> dict[str, np.ndarray]:
    """Every number that the library reads from a trace."""
    kernel, found = probelib.loss_kernel(trace), {}
    for name, values in (("gain", probelib.loss_gain(trace)), ("K_ii", kernel.diagonal())):
        assert values.dims == ("sample",)
        found |= {name: values.values, f"{name}.mcse": values.mcse.values}
        found |= {f"{name}.{c}": values[c].values for c in ("sample_id", "label")}
    for f in (
        probelib.local_learning_coefficient, probelib.empirical_variance,
        probelib.singular_fluctuation,
    ):  # fmt: skip
        estimate = f(trace)
        found[f.__name__] = np.array([estimate.value, estimate.mcse, estimate.ess, estimate.rhat])
    found["mean_loss_change"] = probelib.mean_loss_change(trace)
    found["K"], found["R"] = kernel.covariance(), kernel.correlation()
    found["K.mcse"] = kernel.covariance_mcse(None, None)
    found["features"] = kernel.features() @ kernel.features().T
    found["neighbours"] = kernel.top_correlated(2).index
    verdict = probelib.diagnostics(trace)
    found["diagnostics"] = np.array(
        [verdict.rhat_max, verdict.ess_min, verdict.distance, verdict.loss_along_chains]
    )
    return found


def assert_same(trace: xr.Dataset, expected: xr.Dataset) -> None:
    before = trace.copy(deep=True)
    found, wanted = ours(trace), ours(expected)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6, err_msg=name)
    assert before.identical(trace), "the caller's trace was changed"


def tree(trace):
    return xr.DataTree(dataset=trace)


REARRANGED = {
    "transposed": lambda t: t.transpose("draw", "chain", "sample", "step"),
    "reversed": lambda t: t.transpose("step", "sample", "draw", "chain"),
    "stacked chains and draws": lambda t: t.stack(s=("chain", "draw")),
    "stacked draws and chains": lambda t: t.stack(s=("draw", "chain")),
    "stacked, without an index": lambda t: t.stack(s=("chain", "draw")).reset_index("s"),
    "stacked and unstacked": lambda t: t.stack(s=("chain", "draw")).unstack("s"),
    "stacked draws and samples": lambda t: t.stack(z=("draw", "sample")),
    "stacked whole": lambda t: t.stack(z=("sample", "draw", "chain")),
    "stacked backwards": lambda t: t.stack(s=("chain", "draw")).isel(s=slice(None, None, -1)),
    "chunked": lambda t: t.chunk({"sample": 2, "draw": 7}),
    "chunked and transposed": lambda t: t.chunk({"chain": 1}).transpose("sample", ...),
    "joined along chains": lambda t: xr.concat(
        [t.isel(chain=[0]), t.isel(chain=[1, 2])], "chain", data_vars="all"
    ),
    "joined along draws": lambda t: xr.concat(
        [t.isel(draw=slice(9)), t.isel(draw=slice(9, None))], "draw", data_vars="all"
    ),
    "joined along samples": lambda t: xr.concat(
        [t.isel(sample=slice(2)), t.isel(sample=slice(2, None))], "sample", data_vars="minimal"
    ),
    "a dimension more": lambda t: t.expand_dims("run"),
    "coordinates more": lambda t: t.assign_coords(run=3, draw=np.arange(DRAWS) * 2),
    "labels as an index": lambda t: t.set_index(sample=["label", "sample_id"]),
    "no coordinate of chains": lambda t: t.drop_vars("chain"),
    "a data tree": tree,
    "no steps": lambda t: t.drop_vars("sampling_loss"),
    "in Fortran's order": lambda t: t.assign(
        loss=(t.loss.dims, np.asfortranarray(t.loss.values))
    ),
    "read-only": lambda t: t.map(read_only, keep_attrs=True),
}  # fmt: skip


def read_only(array):
    values = array.values.copy()
    values.flags.writeable = False
    return array.copy(data=values)


@pytest.mark.parametrize("kind", REARRANGED)
def test_a_rearranged_trace_gives_the_same_numbers(kind):
    assert_same(REARRANGED[kind](made()), made())


SELECTED = {
    "one chain": (lambda t: t.isel(chain=1), lambda t: t.isel(chain=[1])),
    "one chain, by its number": (lambda t: t.sel(chain=2), lambda t: t.isel(chain=[2])),
    "one chain, squeezed": (lambda t: t.isel(chain=[1]).squeeze(), lambda t: t.isel(chain=[1])),
    "one chain of a stack": (
        lambda t: t.stack(s=("chain", "draw")).sel(chain=1), lambda t: t.isel(chain=[1]),
    ),
    "one chain, a dimension again": (
        lambda t: t.isel(chain=1).expand_dims("chain"), lambda t: t.isel(chain=[1]),
    ),
    "thinned in a stack": (
        lambda t: t.stack(s=("chain", "draw")).isel(s=slice(None, None, 2)),
        lambda t: t.isel(draw=slice(None, None, 2)),
    ),
    "samples by a mask": (
        lambda t: t.isel(sample=t.label != 1).transpose("sample", ...),
        lambda t: t.isel(sample=[0, 2, 3, 5]),
    ),
    "samples sorted by label": (
        lambda t: t.sortby("label").transpose("sample", ...),
        lambda t: t.isel(sample=[0, 3, 1, 4, 2, 5]),
    ),
    "samples repeated": (
        lambda t: t.isel(sample=[0, 0, 5]).stack(s=("draw", "chain")),
        lambda t: t.isel(sample=[0, 0, 5]),
    ),
    "samples backwards": (
        lambda t: t.isel(sample=slice(None, None, -1)).unify_chunks().transpose(),
        lambda t: t.isel(sample=[5, 4, 3, 2, 1, 0]),
    ),
    "chains with the same numbers": (
        lambda t: t.assign_coords(chain=[0, 0, 0]), lambda t: t,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SELECTED)
def test_a_part_of_a_trace_gives_its_own_numbers(kind):
    select, plain = SELECTED[kind]
    assert_same(select(made()), plain(made()))


def test_one_sample_is_a_dimension_of_one():
    one, listed = made().isel(sample=4), made().isel(sample=[4])
    for estimate in (probelib.loss_gain, lambda t: probelib.loss_kernel(t).diagonal()):
        xr.testing.assert_identical(estimate(one), estimate(listed))
    estimates = (probelib.local_learning_coefficient(part) for part in (one, listed))
    np.testing.assert_array_equal(*(dataclasses.astuple(estimate) for estimate in estimates))


REFUSED = {
    "an average of chains": (lambda t: t.mean("chain"), "without chain; select with a list"),
    "an average of draws": (lambda t: t.mean("draw"), "without draw; select with a list"),
    "an average of samples": (lambda t: t.mean("sample"), "without sample; select with a list"),
    "a median of one chain": (
        lambda t: t.isel(chain=0).median("draw"), "without draw; select with a list",
    ),
    "one draw": (lambda t: t.isel(draw=3), r"trace.isel\(draw=\[0\]\)"),
    "one draw in a list": (lambda t: t.isel(draw=[3], chain=0), "at least two"),
    "renamed samples": (
        lambda t: t.rename(sample="token"),
        r'along \(chain, draw, token\) and not .* trace.rename\({"token": "sample"}\)',
    ),
    "renamed draws": (
        lambda t: t.rename(draw="iteration"), r'trace.rename\({"iteration": "draw"}\)',
    ),
    "means of groups": (lambda t: t.groupby("label").mean(), r'trace.rename\({"label": "samp'),
    "a stack without coordinates": (
        lambda t: t.stack(s=("chain", "draw"), create_index=False), r"loss along \(sample, s\)",
    ),
    "half of a stack": (
        lambda t: t.stack(s=("chain", "draw")).isel(s=slice(30)), "stacked along s, where some",
    ),
    "a draw twice in a stack": (
        lambda t: t.stack(s=("chain", "draw")).isel(s=[0, 0, *range(1, CHAINS * DRAWS)]),
        "stacked along s, where some",
    ),
    "no losses": (lambda t: t.drop_vars("loss"), "trace has no variable loss; give a data set"),
    "another name": (lambda t: t.rename(loss="losses"), "trace has no variable loss; "),
    "no losses at w*": (lambda t: t.drop_vars("init_loss"), "trace has no variable init_loss; "),
    "no samples": (lambda t: t.isel(sample=[]), "trace has no samples; keep at least one"),
    "no draws": (lambda t: t.isel(draw=slice(0)), "trace has 0 draws"),
    "no chains": (lambda t: t.isel(chain=[]), "trace has 0 draws"),
    "a chain that is not there": (lambda t: t.reindex(chain=range(5)), "non-finite loss in chain"),
    "chains without a number": (
        lambda t: t.reindex(chain=[0.0, np.nan, np.nan]), "non-finite loss in chain",
    ),
    "joined by labels that differ": (
        lambda t: xr.concat(
            [t.isel(chain=[0]), t.isel(chain=[1, 2], sample=[5, 4, 3, 2, 1, 0])],
            "chain", data_vars="all", coords="different", compat="equals",
        ),
        "init_loss along .*, and it differs along chain; read each part on its own",
    ),
    "joined from two networks": (
        lambda t: xr.concat([t, t.assign(init_loss=t.init_loss + 1, loss=t.loss + 1)], "chain",
                            data_vars="all"),
        "init_loss along .*, and it differs along chain; read each part on its own",
    ),
    "joined along another dimension": (
        lambda t: xr.concat([t, t + 1], "run", data_vars="all"),
        r"differs along run; read each part on its own: trace.isel\(run=\[0\]\)",
    ),
    "the same chain twice": (
        lambda t: xr.concat([t, t.isel(chain=[1])], "chain", data_vars="minimal"),
        r"trace has chain 1 twice, with the same draws \(as chain 1\); leave one out",
    ),
    "one run twice": (
        lambda t: xr.concat(
            [t, t.assign_coords(chain=t.chain.values + 10)], "chain", data_vars="minimal"
        ),
        r"trace has chain 0 twice, with the same draws \(as chain 10\)",
    ),
    "repeated chains": (lambda t: t.isel(chain=[0, 0, 1]), "trace has chain 0 twice"),
    "text": (lambda t: t.assign(loss=t.loss.astype(str)), "give real numbers"),
    "objects": (lambda t: t.assign(loss=t.loss.astype(object)), "loss of the type object"),
    "complex numbers": (lambda t: t.assign(loss=t.loss * 1j), "loss of the type complex"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_sentence(kind):
    rearrange, sentence = REFUSED[kind]
    trace = rearrange(made())
    for estimate in (
        probelib.loss_gain, probelib.local_learning_coefficient, probelib.mean_loss_change,
        probelib.diagnostics, lambda t: probelib.loss_kernel(t).correlation(),
        probelib.singular_fluctuation, probelib.empirical_variance,
    ):  # fmt: skip
        if kind == "no losses at w*" and estimate not in (
            probelib.loss_gain, probelib.local_learning_coefficient, probelib.diagnostics,
            probelib.mean_loss_change,
        ):  # fmt: skip
            estimate(trace)  # which need none
            continue
        with pytest.raises(ValueError, match=sentence) as error:
            estimate(trace)
        assert not str(error.value).endswith(".")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", ["first", "second"])
def test_the_remedy_for_what_differs_works(keep):
    trace = xr.concat([made(), made() + 1], "run", data_vars="all", combine_attrs="override")
    at = ["first", "second"].index(keep)
    assert_same(trace.isel(run=[at]), made() + at)


@pytest.mark.parametrize(
    "what", [made().loss, made().to_dataarray(), made().loss.values, made().to_dict(), None, "t"]
)
def test_what_is_no_data_set_is_named(what):
    with pytest.raises(TypeError, match=r"trace is .*; give the whole xarray.Dataset of a trace"):
        probelib.loss_gain(what)
    with pytest.raises(TypeError, match="trace is a DataTree whose root has no variables"):
        probelib.loss_gain(xr.DataTree(children={"a": xr.DataTree(made()[["init_loss"]])}))


def test_a_trace_keeps_what_its_samples_are_called():
    noisy = np.array([True, False, False, True, False, False])
    trace = made().assign_coords(noisy=("sample", noisy)).transpose("sample", ...)
    assert (probelib.loss_gain(trace).noisy == noisy).all()
    assert (probelib.loss_kernel(trace).diagonal().noisy == noisy).all()


def test_what_is_asked_for_comes_in_order_and_nothing_else():
    trace = made().transpose("step", "draw", "sample", "chain")
    found = contract.canonical(trace, "sampling_loss", "distance")
    assert {str(k): v.dims for k, v in found.data_vars.items()} == {
        k: contract.VARIABLES[k] for k in ("sampling_loss", "distance", "init_loss")
    }


def paired() -> xr.Dataset:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 5, 4))
    return xr.Dataset(
        {
            "kernel": (("chain", "sample", "other"), x @ x.transpose(0, 2, 1)),
            "loss": (("chain", "draw", "sample"), rng.random((3, 2, 5))),
            "init_loss": ("sample", rng.random(5)),
        },
        coords={"sample_id": ("sample", np.arange(5))},
        attrs={"config": {"n_beta": 3.0}},
    )


@pytest.mark.parametrize("order", [("other", "draw", "sample", "chain"), ("sample", "chain", ...)])
def test_pairs_go_by_name(order):
    turned = paired().transpose(*order)
    wanted, found = (probelib.pair_kernel(p, limit=True) for p in (paired(), turned))
    np.testing.assert_allclose(found.covariance(), wanted.covariance(), rtol=1e-12)
    xr.testing.assert_allclose(found.diagonal(), wanted.diagonal())


@pytest.mark.parametrize(
    "part",
    [{"sample": [0, 2]}, {"other": [3, 4]}, {"sample": [1, 0, 2, 3, 4]}, {"sample": [0] * 5}],
)
def test_pairs_that_were_cut_on_one_side_are_named(part):
    with pytest.raises(ValueError, match=r"select both alike: pairs.isel\(sample=some, other=some"):
        probelib.pair_kernel(paired().isel(part), limit=True)
    some = [0, 2]
    both = probelib.pair_kernel(paired().isel(sample=some, other=some), limit=True)
    np.testing.assert_array_equal(
        both.covariance(), probelib.pair_kernel(paired(), limit=True).covariance(some, some)
    )
