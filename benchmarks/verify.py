"""How well `verify` tells broken artifacts from healthy ones, and how long it takes. `make bench-verify`.

Healthy artifacts (healthy.py) get defects of many kinds (defects*.py), each born where such defects are. A
mutant is killed when its report does not pass, or when it is refused with an error that says why; a healthy
artifact raises a false alarm when its report does not pass. Mutants that are none, since the same bytes run,
or since the difference can be proven to reach no result, are left out, and listed with the reason. Polygraphy
and two simple rivals judge the same pairs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback
import venv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import Claim, write

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "verify"
SIDE = {"polygraphy": "0.53.6", "numpy": "2.4.6"}
CASES = 1000
RIVAL_SAMPLES = 200
# Every so many kinds of defect are injected into one artifact, other ones into the next.
EVERY = {"minilm": 14, "mobilenetv2": 14, "resnet8": 6, "ds_cnn": 6, "keywords": 6}
EVERY_ELSE = 2
SLOWEST_FIRST = ("mobilenetv2", "minilm", "resnet8", "ds_cnn", "keywords", "sentiment")
QUICK = ("lenet", "mobile", "rows", "recurrent")
TIMED = {"resnet8": "min-max", "ds_cnn": "min-max", "mobilenetv2": "mse"}
MOST_SECONDS, LEAST_SCORE, LEAST_KINDS, LEAST_HEALTHY = 10.0, 99.0, 20, 20
Outputs = Mapping[str, npt.NDArray[Any]]


# Verdicts


def verdict(artifact: Any, reference: Any, data: Any) -> dict[str, Any]:
    """What `verify` says: whether it objects, and why. A crash is no objection."""
    from edgewright import verify
    from edgewright.errors import SdkError
    from edgewright_device import ArtifactError, RunnerError

    began = time.perf_counter()
    try:
        if not isinstance(artifact, Path):
            artifact.report()  # refuses one that is about another artifact
        report = verify(artifact, reference=reference, data=data, cases=CASES)
    except (SdkError, ArtifactError, RunnerError) as error:
        found = {"objects": True, "why": [f"{type(error).__name__}: {error}"[:160]]}
    except Exception:  # whatever it is, it is a crash, and counts against `verify`
        found = {"objects": False, "crashed": True, "why": [f"crashed: {traceback.format_exc(limit=-3)}"]}
    else:
        bad = [f"{c.name}: {c.verdict}" for c in report.checks if c.verdict != "passed"]
        found = {"objects": not report.passed, "why": bad, "sqnr_db": report.sqnr_db}
    return {**found, "seconds": time.perf_counter() - began}


def rivals(healthy: Any, artifact: Any, random: Outputs, out: Path) -> dict[str, Any]:
    """What simple rivals measure; writes the outputs for Polygraphy."""
    from healthy import engines

    from edgewright import sqnr_db
    from edgewright.graph import float_function

    real = {n: v[:RIVAL_SAMPLES] for n, v in healthy.data.items()}
    floats = float_function(healthy.reference)
    saved: dict[str, Any] = {}
    measured: dict[str, Any] = {"sqnr_db": None, "accuracy_drop": None}
    for name, inputs in (("real", real), ("default", random)):
        names = list(engines(healthy.artifact, {n: v[:1] for n, v in real.items()}).popitem()[1])
        exact = dict(zip(names, floats(list(inputs.values())), strict=True))
        given = engines(artifact, inputs)
        saved |= {f"{name}.float.{n}": v for n, v in exact.items()}
        saved |= {f"{name}.{e}.{n}": v for e, o in given.items() for n, v in o.items()}
        if name == "default" or not given:
            continue
        with np.errstate(all="ignore"):
            measured["sqnr_db"] = min(sqnr_db(exact[n], o[n]) for o in given.values() for n in names)
        if healthy.labels is not None:
            labels = healthy.labels[:RIVAL_SAMPLES]

            def accuracy(o: Outputs, labels: Any = labels, first: str = names[0]) -> float:
                return float(np.mean(o[first].argmax(1) == labels))

            worst = min(accuracy(o) for o in given.values())
            measured["accuracy_drop"] = accuracy(exact) - worst
    np.savez(out, allow_pickle=False, **saved)
    return measured


# One network


def network(name: str, every: int, python: str | None) -> list[dict[str, Any]]:
    """All artifacts of a network, and their mutants, judged. Runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    import defects_elsewhere
    import defects_graph
    import defects_program
    import healthy
    from defects import DEFECTS, Subject, UnsuitableError, mutant

    del defects_elsewhere, defects_graph, defects_program  # they have listed theirs
    rows: list[dict[str, Any]] = []
    pairs, mutants = FOLDER / "pairs", FOLDER / "mutants" / name
    shutil.rmtree(mutants, ignore_errors=True)
    for number, subject in enumerate(healthy.made(name, FOLDER / "zoo")):
        random = _default_inputs(subject, python)
        row: dict[str, Any] = {"subject": subject.name, "kind": None, "well": subject.is_well}
        out = pairs / f"{subject.name.replace('/', '_')}.npz"
        row |= {
            **verdict(subject.artifact, subject.reference, subject.data),
            "rivals": rivals(subject, subject.artifact, random, out),
            "pair": out.stem,
            "evidence": dict(subject.evidence),
        }
        rows.append(row)
        for index, kind in enumerate(DEFECTS):
            if (index + number) % every:
                continue
            try:
                made = mutant(Subject(healthy=subject), kind, number, mutants)
            except UnsuitableError:
                continue
            except Exception as error:
                print(f"{subject.name}, {kind.kind}: not injected: {error!r}"[:300], file=sys.stderr)
                continue
            row = {
                "subject": subject.name,
                "name": made.name,
                "kind": kind.kind,
                "where": kind.where,
                "what": kind.what,
                "note": made.note,
                "equivalent": made.equivalent,
            }
            if not made.equivalent:
                out = pairs / f"{made.name.replace('/', '_')}.npz"
                with made.broken():
                    row |= {
                        **verdict(made.artifact, subject.reference, subject.data),
                        "rivals": rivals(subject, made.artifact, random, out),
                        "pair": out.stem,
                    }
            rows.append(row)
            if isinstance(made.artifact, Path):
                made.artifact.unlink()
            else:
                shutil.rmtree(made.artifact.path, ignore_errors=True)
    return rows


def _default_inputs(subject: Any, python: str | None) -> Outputs:
    """Polygraphy's own inputs for a model; one real sample where it is not here."""
    spec = [(n, v.dtype.name, v.shape[1:]) for n, v in subject.data.items()]
    if python is None:
        return {n: v[:1] for n, v in subject.data.items()}
    base = FOLDER / f"inputs-{subject.name.replace('/', '_')}"
    base.with_suffix(".json").write_text(json.dumps(spec), "utf-8")
    files = [str(base.with_suffix(s)) for s in (".json", ".npz")]
    judge = str(Path(__file__).with_name("polygraphy_judge.py"))
    subprocess.run([python, judge, "inputs", *files], check=True)
    with np.load(files[1]) as file:
        return {n: file[n] for n, _, _ in spec}


# Polygraphy


def side_python() -> str | None:
    """The Python of an environment with Polygraphy, made on first use; None where it cannot be made."""
    folder = ROOT / "build" / "polygraphy"
    python = folder / "bin" / "python"
    wanted = [f"{n}=={v}" for n, v in SIDE.items()]
    stamp = folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text("utf-8").split() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "-q", *wanted]
        if subprocess.run(pip, check=False).returncode:
            print("Polygraphy cannot be installed here, and is left out", file=sys.stderr)
            return None
        stamp.write_text("\n".join(wanted), "utf-8")
    return str(python)


def polygraphy(python: str) -> dict[str, dict[str, bool]]:
    """Its verdicts by pair and setting."""
    out = FOLDER / "polygraphy.json"
    judge = str(Path(__file__).with_name("polygraphy_judge.py"))
    subprocess.run([python, judge, "judge", str(FOLDER / "pairs"), str(out)], check=True)
    found: dict[str, dict[str, bool]] = json.loads(out.read_text("utf-8"))
    return found


def others(rows: Sequence[dict[str, Any]], said: Mapping[str, Mapping[str, bool]]) -> list[dict[str, Any]]:
    """What each rival caught of the mutants, and how often it cried over a healthy artifact."""
    mutants = [r for r in rows if r["kind"] and not r["equivalent"]]
    healthy = [r for r in rows if not r["kind"]]

    def drops(row: dict[str, Any]) -> bool:
        drop = row["rivals"]["accuracy_drop"]
        return unloadable(row) or (drop is not None and drop > 0.01)

    def unloadable(row: dict[str, Any]) -> bool:
        return row["rivals"]["sqnr_db"] is None

    def noisy(row: dict[str, Any]) -> bool:
        return unloadable(row) or not row["rivals"]["sqnr_db"] >= least

    # The highest threshold that lets every healthy artifact pass: the best one, known only afterwards.
    least = min(r["rivals"]["sqnr_db"] for r in healthy)
    tests: dict[str, Any] = {
        "accuracy drops by more than 1 point": drops,
        f"SQNR below {least:.1f} dB, the best threshold in hindsight": noisy,
    }
    for setting in next(iter(said.values()), {}):
        tests[f"Polygraphy, {setting}"] = lambda r, s=setting: unloadable(r) or said[r["pair"]][s]
    return [
        {
            "rival": name,
            "killed": sum(bool(alarms(r)) for r in mutants),
            "mutants": len(mutants),
            "false_alarms": sum(bool(alarms(r)) for r in healthy),
            "healthy": len(healthy),
        }
        for name, alarms in tests.items()
    ]


# Time


def seconds(name: str) -> float:
    """Seconds that `verify` with 1,000 cases takes on one core, imports and all, in a fresh process."""
    import healthy
    import verify_networks

    folder = FOLDER / "timed"
    folder.mkdir(parents=True, exist_ok=True)
    net = verify_networks.mobilenet(224) if name == "mobilenetv2" else healthy.network(name, folder)
    chosen = healthy.exported(net, folder, "timed", healthy.RECIPES[name][TIMED[name]])
    np.savez(folder / f"{name}.npz", allow_pickle=False, **chosen.data)
    assert isinstance(chosen.reference, Path)
    assert not isinstance(chosen.artifact, Path)
    code = (
        "import sys, time; began = time.perf_counter()\n"
        "import numpy as np; import edgewright as ew\n"
        "data = dict(np.load(sys.argv[3]))\n"
        f"ew.verify(sys.argv[1], reference=sys.argv[2], data=data, cases={CASES})\n"
        "print(time.perf_counter() - began)"
    )
    files = [str(chosen.artifact.path), str(chosen.reference), str(folder / f"{name}.npz")]
    command = ["taskset", "-c", "0", sys.executable, "-c", code, *files]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    best = float("inf")
    for _ in range(2):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        best = min(best, float(done.stdout.split()[-1]))
    return best


# All of it


def kinds(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each kind of defect: how many mutants, how many killed, and who survived."""
    for kind in dict.fromkeys(r["kind"] for r in rows if r["kind"]):
        of = [r for r in rows if r["kind"] == kind]
        counted = [r for r in of if not r["equivalent"]]
        yield {
            "kind": kind,
            "where": of[0]["where"],
            "what": of[0]["what"],
            "mutants": len(counted),
            "killed": sum(r["objects"] for r in counted),
            "survivors": [
                f"{r['name']}: {r['note']}" + (f" ({r['why'][0]})" if r["why"] else "")
                for r in counted
                if not r["objects"]
            ],
            "equivalent": [f"{r['name']}: {r['equivalent']}" for r in of if r["equivalent"]],
        }


def alarmed(row: dict[str, Any]) -> bool:
    """Whether a healthy artifact does not pass, or is not healthy as the engine's outputs show."""
    return bool(row["objects"] or row.get("crashed") or not row["well"])


def claims(rows: Sequence[dict[str, Any]], seconds_: Mapping[str, float]) -> list[Claim]:
    """What is claimed."""
    found = list(kinds(rows))
    total, killed = (sum(k[n] for k in found) for n in ("mutants", "killed"))
    healthy = [r for r in rows if not r["kind"]]
    alarms = sum(alarmed(r) for r in healthy)
    score = 100 * killed / max(1, total)
    injected = sum(k["mutants"] > 0 for k in found)
    made = [
        Claim(
            id=f"cases_seconds.{n}",
            what=f"`verify` of {n} with {CASES:,} cases, on one core, in a fresh process, imports included",
            value=s,
            unit="s",
            goal=MOST_SECONDS,
            reached=s <= MOST_SECONDS,
        )
        for n, s in seconds_.items()
    ]
    made.append(
        Claim(
            id="mutation_score",
            what=f"mutants that `verify` kills, of {total:,} of {injected} kinds",
            value=score,
            unit="%",
            goal=LEAST_SCORE,
            reached=score >= LEAST_SCORE and injected >= LEAST_KINDS,
        )
    )
    made.append(
        Claim(
            id="false_alarms",
            what=f"healthy artifacts whose report does not pass, of {len(healthy)}",
            value=alarms,
            unit="artifacts",
            goal=0,
            reached=alarms == 0 and len(healthy) >= LEAST_HEALTHY,
        )
    )
    return made


def main() -> None:
    """Makes, breaks, judges, times and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four small networks; nothing is timed or kept")
    parser.add_argument("--networks", nargs="+", help="these alone; nothing is timed or kept")
    parser.add_argument("--seconds", action="store_true", help="only the times")
    parser.add_argument("--jobs", type=int, default=2, help="processes; %(default)s if left out")
    options = parser.parse_args()
    from healthy import RECIPES

    names = options.networks or (QUICK if options.quick else tuple(RECIPES))
    names = sorted(names, key=lambda n: (n not in SLOWEST_FIRST, n))
    os.environ["OMP_NUM_THREADS"] = "1"
    for folder in ("pairs", "mutants", "zoo"):
        shutil.rmtree(FOLDER / folder, ignore_errors=True)
        (FOLDER / folder).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    if not options.seconds:
        python = side_python()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context) as pool:
            work = {pool.submit(network, n, EVERY.get(n, EVERY_ELSE), python): n for n in names}
            for done in as_completed(work):
                found = done.result()
                rows += found
                took = sum(r.get("seconds", 0) for r in found)
                print(f"{work[done]}: {len(found)} artifacts, {took:.0f} s of verification", flush=True)
                (FOLDER / "rows.json").write_text(json.dumps(rows, indent=1), "utf-8")
        rows.sort(key=lambda r: r["subject"])
        report(rows)
    (FOLDER / "rows.json").write_text(json.dumps(rows, indent=1), "utf-8")
    if options.quick or options.networks:
        return
    times = {n: seconds(n) for n in TIMED}
    print(times)
    if options.seconds:
        return
    said = polygraphy(python) if python else {}
    made = claims(rows, times)
    print(*made, sep="\n")
    healthy = [{k: v for k, v in r.items() if k not in {"kind", "pair"}} for r in rows if not r["kind"]]
    results = [
        *({"table": "kinds", **k} for k in kinds(rows)),
        *({"table": "healthy", **h} for h in healthy),
        *({"table": "rivals", **o} for o in others(rows, said)),
    ]
    print(write("verify", made, results, ("numpy", "torch", "onnxruntime", "edgewright"), SIDE))


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Prints survivors and alarms."""
    for row in rows:
        if not row["kind"] and alarmed(row):
            print(f"ALARM {row['subject']}: {row['why']} {row['evidence']}")
    for kind in kinds(rows):
        print(f"{kind['killed']:4} of {kind['mutants']:4}  {kind['kind']}")
        for survivor in kind["survivors"]:
            print(f"        {survivor}")
    for claim in claims(rows, {}):
        print(claim.id, claim.value, claim.what)


if __name__ == "__main__":
    main()
