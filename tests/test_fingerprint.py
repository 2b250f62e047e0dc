"""What a trace depends on is in its fingerprint, or the trace is never served again."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import probelib
from probelib.data import Samples
from probelib.fingerprint import describe, not_followed
from probelib.store import TraceMismatch

HEAD = """
import abc, collections, dataclasses, datetime, enum, fractions, functools, importlib, logging
import operator, os, pathlib, re, sys, threading, types
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from probelib import cross_entropy
"""


def of_code(code, name="loss", **space):
    """Description of ``name`` after some code ran as a script would."""
    space = {"__name__": "__main__", **space}
    exec(compile(HEAD + textwrap.dedent(code), "job.py", "exec"), space)
    value = space[name]
    return describe(value, tensors=not isinstance(value, nn.Module))


# Each with VALUE where a change matters only away from w*.
CHANGES = {
    "a literal": "def loss(o, t): return cross_entropy(o, t).clamp(max=VALUE)",
    "a global": """
        CAP = VALUE
        def loss(o, t): return cross_entropy(o, t).clamp(max=CAP)""",
    "a global in a comprehension": """
        CAP = VALUE
        def loss(o, t): return sum([CAP * part for part in o])""",
    "a global in a lambda in a function": """
        CAP = VALUE
        def loss(o, t): return (lambda l: l.clamp(max=CAP))(cross_entropy(o, t))""",
    "a global in a class inside": """
        CAP = VALUE
        def loss(o, t):
            class Inside:
                cap = CAP
            return Inside.cap * o""",
    "a helper": """
        def helper(l): return l.clamp(max=VALUE)
        def loss(o, t): return helper(cross_entropy(o, t))""",
    "a helper of a helper that calls itself": """
        def third(l): return l * VALUE if l.sum() else loss(l, l)
        def second(l): return third(l)
        def first(l): return second(l)
        def loss(o, t): return first(o)""",
    "an attribute of a global namespace": """
        cfg = types.SimpleNamespace(inner=types.SimpleNamespace(cap=VALUE))
        def loss(o, t): return o * cfg.inner.cap""",
    "a dict of dicts": """
        cfg = {"a": {"b": [1, {"c": VALUE}]}}
        def loss(o, t): return o * cfg["a"]["b"][1]["c"]""",
    "a default": "def loss(o, t, cap=VALUE): return o * cap",
    "a default by keyword": "def loss(o, t, *, cap={'x': VALUE}): return o * cap['x']",
    "a closure": """
        def make(cap):
            def loss(o, t): return o * cap
            return loss
        loss = make(VALUE)""",
    "a closure of a closure": """
        def make(cap):
            def helper(l): return l * cap
            return lambda o, t: helper(o)
        loss = make([VALUE])""",
    "a lambda": "loss = lambda o, t: cross_entropy(o, t) * VALUE",
    "a partial": "loss = functools.partial(lambda o, t, cap: o * cap, cap=(VALUE,))",
    "a partial of a partial": """
        loss = functools.partial(functools.partial(lambda o, t, cap: o * cap, cap={VALUE}), t=1)""",
    "a decorator": """
        def capped(f):
            @functools.wraps(f)
            def wrapper(o, t): return f(o, t) * VALUE
            return wrapper
        @capped
        def loss(o, t): return o""",
    "what a decorator wraps": """
        def same(f):
            @functools.wraps(f)
            def wrapper(*args): return f(*args)
            return wrapper
        @same
        @torch.no_grad()
        def loss(o, t): return o * VALUE""",
    "a cached helper": """
        @functools.lru_cache
        def cap(): return VALUE
        def loss(o, t): return o * cap()""",
    "an attribute of a function": """
        def loss(o, t): return o * loss.cap
        loss.cap = VALUE""",
    "an attribute of an instance": """
        class Loss:
            def __init__(self, cap): self.cap = cap
            def __call__(self, o, t): return o * self.cap
        loss = Loss({"cap": VALUE})""",
    "a slot": """
        class Loss:
            __slots__ = ("__cap",)
            def __init__(self, cap): self.__cap = cap
            def __call__(self, o, t): return o * self.__cap
        loss = Loss(VALUE)""",
    "a class attribute": """
        class Loss:
            cap = VALUE
            def __call__(self, o, t): return o * self.cap
        loss = Loss()""",
    "a class attribute of a base of a global": """
        class Base: cap = VALUE
        class Settings(Base): pass
        def loss(o, t): return o * Settings.cap""",
    "a method that a method calls": """
        class Loss:
            def third(self): return VALUE
            def second(self): return self.third()
            def __call__(self, o, t): return o * self.second()
        loss = Loss()""",
    "a bound method": """
        class Loss:
            def __init__(self): self.cap = VALUE
            def of(self, o, t): return o * self.cap
        loss = Loss().of""",
    "a property": """
        class Loss:
            @property
            def cap(self): return VALUE
            def __call__(self, o, t): return o * self.cap
        loss = Loss()""",
    "a cached property": """
        class Loss:
            @functools.cached_property
            def cap(self): return VALUE
            def __call__(self, o, t): return o * self.cap
        loss = Loss()""",
    "a static method": """
        class Tools:
            @staticmethod
            def cap(): return VALUE
        def loss(o, t): return o * Tools.cap()""",
    "a class method": """
        class Tools:
            @classmethod
            def cap(cls): return VALUE
        def loss(o, t): return o * Tools.cap()""",
    "an operator": """
        class Money:
            def __rmul__(self, other): return other * VALUE
        unit = Money()
        def loss(o, t): return o * unit""",
    "what a class does when it is made": """
        class Capped:
            def __init__(self, l): self.l = l * VALUE
        def loss(o, t): return Capped(o).l""",
    "an attribute by a name that is made up": """
        class Loss:
            def cap_a(self): return VALUE
            def __call__(self, o, t): return o * getattr(self, "cap_" + "a")()
        loss = Loss()""",
    "a metaclass": """
        class Meta(type):
            def __call__(cls, l): return l * VALUE
        class Scale(metaclass=Meta): pass
        def loss(o, t): return Scale(o)""",
    "a dataclass": """
        @dataclasses.dataclass(frozen=True)
        class Settings:
            cap: float = 1.0
        settings = Settings(VALUE)
        def loss(o, t): return o * settings.cap""",
    "a default of a dataclass": """
        @dataclasses.dataclass
        class Settings:
            cap: float = VALUE
        def loss(o, t): return o * Settings().cap""",
    "an enum": """
        class Cap(enum.Enum): LOW = VALUE
        def loss(o, t): return o * Cap.LOW.value""",
    "a named tuple": """
        Settings = collections.namedtuple("Settings", "cap")
        settings = Settings(VALUE)
        def loss(o, t): return o * settings.cap""",
    "a tensor": "loss = functools.partial(lambda w, o, t: o * w, torch.tensor([1, VALUE]))",
    "a sparse tensor": """
        loss = functools.partial(lambda w, o, t: o * w, torch.tensor([0, VALUE]).to_sparse())""",
    "a numpy scalar": "loss = functools.partial(lambda w, o, t: o * w, np.float32(VALUE))",
    "an array of objects": """
        loss = functools.partial(lambda w, o, t: o, np.array([{"a": VALUE}, None], dtype=object))""",  # noqa: E501
    "a path": "loss = functools.partial(lambda w, o, t: o, pathlib.Path('VALUE'))",
    "a pattern": "loss = functools.partial(lambda w, o, t: o, re.compile('VALUE'))",
    "a date": """
        loss = functools.partial(lambda w, o, t: o, datetime.timedelta(VALUE))""",
    "a deque": "loss = functools.partial(lambda w, o, t: o, collections.deque([VALUE]))",
    "a subclass of a dict": """
        class Cfg(dict): __getattr__ = dict.get
        loss = functools.partial(lambda w, o, t: o * w.cap, Cfg(cap=VALUE))""",
    "a fraction": "loss = functools.partial(lambda w, o, t: o, fractions.Fraction(VALUE))",
    "an iterator": "loss = functools.partial(lambda w, o, t: o, iter([VALUE]))",
    "an operator from the library": """
        loss = functools.partial(lambda w, o, t: o, operator.itemgetter(VALUE))""",
    "a name of a library that was given another value": """
        np.probelib_cap = VALUE
        def loss(o, t): return o * np.probelib_cap""",
    "jit": """
        loss = torch.jit.trace(lambda o, t: o * VALUE + t, (torch.ones(2), torch.ones(2)))""",
    "torch.compile": "loss = torch.compile(lambda o, t: o * VALUE)",
    "a custom gradient": """
        class Clip(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x): return x
            @staticmethod
            def backward(ctx, g): return g * VALUE
        def loss(o, t): return Clip.apply(o)""",
    "60 levels": """
        box = VALUE
        for _ in range(60): box = [types.SimpleNamespace(inside=box)]
        loss = functools.partial(lambda w, o, t: o, box)""",
    "an exception range": """
        def loss(o, t):
            try:
                o = o * 2
                if VALUE == 1: o = o + 1
            except ValueError: pass
            return o""",
    "a settings dict of a module": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cfg = {"cap": VALUE}
            def forward(self, x): return x.clamp(max=self.cfg["cap"])
        loss = Net()""",
    "a tensor that is no buffer": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.tensor(VALUE)
            def forward(self, x): return x * self.scale
        loss = nn.Sequential(nn.Linear(2, 2), Net())""",
    "a function of a module": """
        class Act(nn.Module):
            def __init__(self, f):
                super().__init__()
                self.f = f
            def forward(self, x): return self.f(x)
        loss = nn.Sequential(Act(lambda x: x * VALUE))""",
    "a private attribute of a module": """
        loss = nn.Sequential(nn.Linear(2, 2))
        loss[0]._settings = [VALUE]""",
    "a set of a module": """
        loss = nn.Sequential(nn.Linear(2, 2))
        loss[0].kept = {"a", "b", VALUE}""",
    "a forward that was replaced": """
        loss = nn.Linear(2, 2)
        loss.forward = types.MethodType(lambda self, x: x * VALUE, loss)""",
    "a forward hook": """
        loss = nn.Sequential(nn.Linear(2, 2))
        loss[0].register_forward_hook(lambda m, a, o: o * VALUE)""",
    "a forward pre-hook": """
        loss = nn.Sequential(nn.Linear(2, 2))
        loss[0].register_forward_pre_hook(lambda m, a: (a[0] * VALUE,))""",
    "a backward hook": """
        loss = nn.Sequential(nn.Linear(2, 2))
        loss[0].register_full_backward_hook(lambda m, a, o: (a[0] * VALUE,))""",
    "a parametrisation": """
        import torch.nn.utils.parametrize as parametrize
        class Scale(nn.Module):
            def forward(self, x): return x * VALUE
        loss = nn.Linear(2, 2)
        parametrize.register_parametrization(loss, "weight", Scale())""",
    "a slot of a dict": """
        class Settings(dict): __slots__ = ("cap",)
        settings = Settings(); settings.cap = VALUE
        def loss(o, t): return o.clamp(max=settings.cap)""",
    "a slot of a partial": """
        class Capped(functools.partial): __slots__ = ("cap",)
        loss = Capped(lambda o, t: o)
        loss.cap = VALUE""",
    "a mask": """
        cap = np.ma.array([1., 2.], mask=[VALUE == 1, False])
        def loss(o, t): return o * float(cap.sum())""",
    "an attribute of a member": """
        class Cap(enum.Enum):
            LOW = 1
        Cap.LOW.value_of_it = VALUE
        def loss(o, t): return o * Cap.LOW.value_of_it""",
    "an order": """
        caps = collections.OrderedDict(a=1, b=2)
        caps.move_to_end("a" if VALUE == 1 else "b")
        def loss(o, t): return o * next(iter(caps.values()))""",
    "a scale": """
        scale = float(VALUE)
        cap = torch.quantize_per_tensor(torch.full((2,), scale), scale, 0, torch.qint8)
        def loss(o, t): return o * cap.dequantize()""",
    "a pattern of a class": """
        class Cap:
            __match_args__ = ("cap",)
            @property
            def cap(self): return VALUE
        cap = Cap()
        def loss(o, t):
            match cap:
                case Cap(c): return o * c""",
    "an attribute by a partial": """
        class Cap:
            @property
            def cap(self): return VALUE
        cap, get = Cap(), functools.partial(getattr, Cap())
        def loss(o, t): return o * get("cap")""",
    "an attribute by a name of one's own": """
        from operator import attrgetter as taken
        class Cap:
            @property
            def cap(self): return VALUE
        cap = Cap()
        def loss(o, t): return o * taken("cap")(cap)""",
    "a setting of a layer that is not in its text": """
        loss = nn.MultiheadAttention(4, 2)
        loss.dropout = VALUE / 10""",
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_away_from_the_weights_is_seen(kind):
    def described(value):
        torch.manual_seed(0)
        return of_code(CHANGES[kind].replace("VALUE", str(value)))

    assert described(1) == described(1)
    assert described(1) != described(2)
    assert not_followed(described(1)) is None


def test_modules_of_ones_own_are_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "probe_cfg.py").write_text("CAP = 1.0\nOTHER = 1.0\ndef cap(): return CAP\n")
    import probe_cfg

    ways = {
        "attribute": "import probe_cfg\ndef loss(o, t): return o * probe_cfg.CAP",
        "alias": "import probe_cfg\ndef loss(o, t):\n    c = probe_cfg\n    return o * c.CAP",
        "function": "import probe_cfg\ndef loss(o, t): return o * probe_cfg.cap()",
        "from": "from probe_cfg import cap\ndef loss(o, t): return o * cap()",
        "inside": "def loss(o, t):\n    import probe_cfg\n    return o * probe_cfg.CAP",
        "from inside": "def loss(o, t):\n    from probe_cfg import CAP\n    return o * CAP",
        "by name": "import probe_cfg\ndef loss(o, t): return o * getattr(probe_cfg, 'C' + 'AP')",
        "held": "import probe_cfg\nloss = functools.partial(lambda c, o, t: o * c.CAP, probe_cfg)",
    }
    before = {way: of_code(code) for way, code in ways.items()}
    monkeypatch.setattr(probe_cfg, "CAP", 2.0)
    assert not [way for way, code in ways.items() if of_code(code) == before[way]]
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probe_cfg, "OTHER", 2.0)  # which only one of them may look up
    differ = [way for way, code in ways.items() if of_code(code) != before[way]]
    assert set(differ) <= {"by name", "alias"}


def test_what_was_put_into_a_library_is_seen(monkeypatch):
    layer, before = nn.Sequential(nn.Linear(2, 2)), {}
    looks_up = "def loss(o, t): return F.cross_entropy(o, t, reduction='none')"
    before = describe(layer), of_code(looks_up)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * x)
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda o, t, reduction: o.sum(1))
    now = describe(layer), of_code(looks_up)
    assert now[0] != before[0]
    assert now[1] != before[1]
    hook = nn.modules.module.register_module_forward_hook(lambda m, a, o: 2 * o)
    assert describe(layer) != now[0]
    hook.remove()
    assert describe(layer) == now[0]


def test_a_class_that_names_no_module_is_followed():
    def described(value):
        space = {}
        exec(f"class Loss:\n    def __call__(self, o, t): return o * {value}", space)
        return describe(space["Loss"]())

    assert described(1) == described(1)
    assert described(1) != described(2)


SAME = [
    "def loss(o, t): return cross_entropy(o, t).clamp(max=3.0)",
    "def loss(o, t):\n    # a comment\n    return cross_entropy(o, t).clamp(max=3.0)",
    'def loss(o, t):\n    """A docstring."""\n\n    return cross_entropy(o, t).clamp(\n        max=3.0)',  # noqa: E501
    "\n\n\ndef loss(o: int, t: 'what'): return (cross_entropy(o, t).clamp(max=3.0))",
]  # fmt: skip


def test_how_code_is_written_changes_nothing():
    assert len(set(map(of_code, SAME))) == 1
    lambdas = ["loss = lambda o, t: o * 2", "f = (lambda o, t: o * 2, 5)\nloss = f[0]"]
    lambdas += ["f = dict(a=(lambda o, t: o * 2), b=7, c=lambda: 0)\nloss = f['a']"]
    assert len(set(map(of_code, lambdas))) == 1
    template = """
        class Loss:
            {}
            def __call__(self, o, t):
                {}
                return self.cap * o
            @functools.cached_property
            def cap(self):
                {}
                return 3
            {}
        loss = Loss()"""
    texts = [("", "", "", ""), ("'''A.'''", "'''B.'''", "'''C.'''", "def unused(self): return 1")]
    assert len({of_code(template.format(*text)) for text in texts}) == 1


UNSEEN = {
    "exec": "def loss(o, t):\n    space = {}\n    exec('cap = 1', space)\n    return o * space['cap']",  # noqa: E501
    "eval": "def loss(o, t): return o * eval('CAP')",
    "eval under another name": "e = eval\ndef loss(o, t): return o * e('CAP')",
    "eval that was captured": "loss = functools.partial(lambda e, o, t: o * e('CAP'), eval)",
    "globals": "CAP = 1\ndef loss(o, t): return o * globals()['CAP']",
    "__globals__": "CAP = 1\ndef loss(o, t): return o * loss.__globals__['CAP']",
    "importlib": "def loss(o, t): return o * importlib.import_module('cfg').CAP",
    "importlib inside": "def loss(o, t):\n    import importlib as i\n    return i.import_module('c').C",  # noqa: E501
    "sys.modules": "def loss(o, t): return o * sys.modules['__main__'].CAP",
    "a frame": "def loss(o, t): return o * sys._getframe(1).f_locals['cap']",
    "a file": "def loss(o, t): return o * float(open('cap.txt').read())",
    "a path": "def loss(o, t): return o * float(pathlib.Path('cap.txt').read_text())",
    "the environment": "def loss(o, t): return o * float(os.environ['CAP'])",
    "getenv": "from os import getenv\ndef loss(o, t): return o * float(getenv('CAP'))",
    "an array on disk": "def loss(o, t): return o * np.load('cap.npy')",
    "an array that is mapped": "def loss(o, t): return o * np.memmap('cap.bin')",
    "a file of another library": "from safetensors.torch import load_file\ndef loss(o, t): return load_file('c')",  # noqa: E501
    "a path that is opened": "def loss(o, t): return o * float(pathlib.Path('c').open().read())",
    "a name that is resolved": "import pkgutil\ndef loss(o, t): return pkgutil.resolve_name('c:c')",
    "a generator": "caps = (i for i in range(9))\ndef loss(o, t): return o * next(caps)",
    "an open file": "file = open(os.devnull)\ndef loss(o, t): return o * len(file.read())",
    "a function of numpy's": "cap = np.frompyfunc(lambda x: x, 1, 1)\ndef loss(o, t): return cap(o)",  # noqa: E501
    "something in a thread": "local = threading.local()\ndef loss(o, t): return o * local.cap",
    "too deep": "box = 1\nfor _ in range(9999): box = [box]\ndef loss(o, t): return box",
    "an attribute of a layer": "loss = nn.ReLU()\nloss.rows = (i for i in range(9))",
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_cannot_be_followed_is_named(kind):
    assert not_followed(of_code(UNSEEN[kind]))


FOLLOWED = {
    "a logger": "log = logging.getLogger('x')\ndef loss(o, t):\n    log.debug('x')\n    return o",
    "a message": "def loss(o, t):\n    print('x', file=sys.stderr)\n    return o",
    "a lock": "lock = threading.Lock()\ndef loss(o, t):\n    with lock: return o",
    "methods that are not called": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cfg = open(os.devnull).read()
                self.layer0 = nn.Linear(2, 2)
            def save(self, path): torch.save(self.state_dict(), path)
            @classmethod
            def load(cls, path): return torch.load(path)
            def forward(self, x): return getattr(self, f"layer{0}")(x)
        loss = Net()""",
    "an abstract class": """
        class Base(abc.ABC):
            @abc.abstractmethod
            def cap(self): ...
        class Cap(Base):
            def cap(self): return 1
        cap = Cap()
        def loss(o, t): return o * getattr(cap, "cap")()""",
    "an optional library": """
        def loss(o, t):
            try:
                import no_such_library_at_all as lib
            except ImportError: lib = None
            return o""",
    "a function of a library": "loss = functools.partial(F.cross_entropy, reduction='none')",
    "a counter": """
        calls = 0
        def loss(o, t):
            global calls
            calls += 1
            return o""",
    "a cycle": """
        class Node: pass
        a, b = Node(), Node()
        a.other, b.other, a.cap = b, a, 1
        loss = functools.partial(lambda a, o, t: o * a.other.other.cap, a)""",
    "a transformer": "loss = nn.TransformerEncoderLayer(4, 2, 8)",
    "a recurrent layer": "loss = nn.LSTM(2, 3, 2)",
    "weight norm": "loss = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))",
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLLOWED)
def test_what_is_ordinary_is_followed(kind):
    described = of_code(FOLLOWED[kind])
    assert not_followed(described) is None


def test_a_counter_of_a_functions_own_is_no_setting():
    code = FOLLOWED["a counter"]
    assert of_code(code) == of_code(code.replace("calls = 0", "calls = 7"))


def test_real_models_are_followed():
    torchvision = pytest.importorskip("torchvision")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    models = torchvision.models.resnet18(weights=None), transformers.GPT2LMHeadModel(config)
    before = [describe(model, tensors=False) for model in models]
    assert not any(map(not_followed, before))
    models[0].layer2[1].downsample_rate = 3
    models[1].config.scale_attn_weights = False
    now = [describe(model, tensors=False) for model in models]
    assert now[0] != before[0]
    assert now[1] != before[1]


# --- the same in every process ---

SETS = """
    class Kept:
        names = {"a", "b", "c", "d"}
        def __init__(self): self.names = frozenset(["x", "y", "z", ("a", 1)])
        def __call__(self, o, t): return o if "x" in {"x", "q", "r"} else {*self.names}
    loss = Kept()
"""


@pytest.fixture(scope="module")
def elsewhere():
    """Describes values, or code, in one other process, whose strings hash otherwise."""
    script = """
        import pickle, sys
        from test_fingerprint import describe, of_code, torch
        while True:
            how, value = pickle.load(sys.stdin.buffer)
            torch.manual_seed(0)
            print({"value": describe, "code": of_code}[how](value), flush=True)
        """
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path},
    )  # fmt: skip

    def described(how, value):
        process.stdin.write(pickle.dumps((how, value)))
        process.stdin.flush()
        return process.stdout.readline().decode().strip()

    yield described
    process.stdin.close()
    process.kill()
    process.wait()


SLOW = {"jit", "torch.compile"}  # to import


@pytest.mark.parametrize("kind", [*sorted(CHANGES.keys() - SLOW), "sets"])
def test_every_kind_is_the_same_in_another_process(elsewhere, kind):
    code = (CHANGES | {"sets": SETS})[kind].replace("VALUE", "1")
    torch.manual_seed(0)
    assert elsewhere("code", code) == of_code(code)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.frozensets(st.text(max_size=3) | st.integers(), max_size=4)
    ),
    max_leaves=8,
)


@given(st.lists(VALUES, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_equal_values_are_described_alike_and_others_not(values):
    described = [describe(value) for value in values]
    assert described == [describe(value) for value in copy.deepcopy(values)]
    texts = [_text(value) for value in values]
    assert len(set(described)) == len(set(texts))


def _text(value):
    """As repr, with sets in order."""
    if isinstance(value, frozenset):
        return "frozenset" + str(sorted(map(repr, value)))
    if isinstance(value, list | tuple):
        return type(value).__name__ + str([_text(part) for part in value])
    if isinstance(value, dict):
        return "dict" + str([(key, _text(part)) for key, part in value.items()])
    return repr(value)


@given(value=VALUES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_value_is_described_alike_in_another_process(elsewhere, value):
    assert elsewhere("value", value) == describe(value)


# --- with a store ---


def posterior_of(loss, model=None, data=None):
    torch.manual_seed(0)
    model = nn.Linear(2, 2) if model is None else model
    data = (torch.randn(8, 2), torch.arange(8) % 2) if data is None else data
    return probelib.LocalPosterior(model, loss, data, n_beta=1.0, localization=1.0)


def run(posterior, **settings):
    return probelib.sample(
        posterior, sampler=probelib.SGLD(1e-2, 4), chains=1, draws=2, progress=False, **settings
    )


CAP = 50.0
caps = (cap for cap in range(100))


def capped(output, target):
    return probelib.cross_entropy(output, target).clamp(max=CAP)


def unseen(output, target):
    return probelib.cross_entropy(output, target).clamp(max=globals()["CAP"])


@pytest.mark.parametrize("place", ["store", "cache"])
def test_a_store_of_another_global_is_not_served(tmp_path, monkeypatch, place):
    where = {place: tmp_path / "there"}
    first = run(posterior_of(capped), **where)
    np.testing.assert_array_equal(run(posterior_of(capped), **where).loss, first.loss)
    monkeypatch.setitem(globals(), "CAP", 40.0)  # above every loss at w*
    if place == "store":
        with pytest.raises(TraceMismatch, match=r"per_sample_loss is .* there and .* here"):
            run(posterior_of(capped), **where)
    else:
        run(posterior_of(capped), **where)
        assert len(list((tmp_path / "there").glob("*.zarr"))) == 2


class Settings(nn.Module):
    def __init__(self, cap):
        super().__init__()
        self.layer, self.cfg = nn.Linear(2, 2), {"cap": cap}

    def forward(self, x):
        self.last = self.layer(x).clamp(max=self.cfg["cap"])
        return self.last.detach() * 0 + self.layer(x).clamp(max=self.cfg["cap"])


def test_a_store_of_other_settings_of_a_model_is_not_served(tmp_path):
    store = tmp_path / "trace.zarr"
    torch.manual_seed(0)
    models = [Settings(50.0), Settings(50.0), Settings(40.0)]
    for model in models[1:]:
        model.layer = models[0].layer
    run(posterior_of(probelib.cross_entropy, models[0]), store=store)
    posterior = posterior_of(probelib.cross_entropy, models[1])
    before = posterior.fingerprint()
    run(posterior, store=store)
    assert posterior.fingerprint() == before  # what the forward wrote down is no setting
    with pytest.raises(TraceMismatch, match=r"model is .* there and .* here"):
        run(posterior_of(probelib.cross_entropy, models[2]), store=store)


def test_what_cannot_be_followed_is_sampled_but_never_served(tmp_path):
    store, cache = tmp_path / "trace.zarr", tmp_path / "traces"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = run(posterior_of(unseen))  # in memory nothing is served
    for where in ({"store": store}, {"cache": cache}):
        with pytest.warns(UserWarning, match=r"no later call .* per_sample_loss uses globals"):
            first = run(posterior_of(unseen), **where)
        np.testing.assert_array_equal(first.loss, fresh.loss)
    with pytest.raises(
        TraceMismatch, match=r"globals \(in unseen.*by functools.partial.*overwrite"
    ):
        run(posterior_of(unseen), store=store)
    with pytest.raises(TraceMismatch, match=r"globals \(in unseen.*leave out cache"):
        run(posterior_of(unseen), cache=cache)
    assert len(list(cache.glob("*.zarr"))) == 1
    with pytest.raises(TraceMismatch, match="globals"):  # the store says what it is
        run(posterior_of(capped), store=store)
    with pytest.warns(UserWarning, match="no later call"):
        run(posterior_of(unseen), store=store, overwrite=True)


class Molecules(torch.utils.data.Dataset):
    def __init__(self, y):
        self.fingerprint, self.y = "ecfp4", y
        self.x = torch.randn(len(y), 2, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def test_a_fingerprint_of_a_data_sets_own_is_not_taken_for_ours():
    y = torch.arange(2000) % 2
    corrected = y.clone()
    corrected[400:410] = 1 - corrected[400:410]
    device = torch.device("cpu")
    one, other = (Samples(Molecules(labels), device) for labels in (y, corrected))
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == Samples((Molecules(y).x, y), device).fingerprint()
    named = Molecules(y)
    named.probelib_fingerprint = "of 2026"
    assert Samples(named, device).fingerprint() == "of 2026 (2000 samples)"


def test_what_python_notes_of_a_class_that_was_copied_changes_nothing():
    class Scale:
        def __init__(self):
            self.by = 2.0

        def __call__(self, x):
            return self.by * x

    scale = Scale()
    before = describe(scale)
    copy.deepcopy(scale)
    assert "__slotnames__" in vars(Scale)
    assert describe(scale) == before
