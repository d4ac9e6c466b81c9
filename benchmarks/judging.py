"""What the times of a race say: ratios to the best peer, shares of the roof, what a second thread brings."""

from __future__ import annotations

from collections.abc import Mapping

from networks import Network, cost
from peers import OURS
from race import Times
from record import Claim
from settings import Setting

ROOF_MACS = 1 << 24  # in one call of roof.cpp
TWO_THREADS = {"bert-base": 1.8, "resnet50": 1.8}  # the least that they have to bring
DEPTHWISE_GMACS = 40  # a second, to be reached on one core


def race_claims(network: Network, setting: Setting, times: Mapping[str, Times]) -> list[Claim]:
    """The ratio to the best peer, and the share of the roof of the path in use."""
    judged = setting.name == "avx2"
    tail = "" if judged else f".{setting.name}"
    goal = network.must if judged else None
    ours = f"{OURS} {setting.paths[0]}"
    claims = [_ratio(f"ratio.{network.name}{tail}", network, setting, times, goal, "one thread")]
    if "roof" in times:
        roof = times["roof"]
        macs = cost(network)[0]
        claims.append(
            Claim(
                id=f"roofline.{network.name}{tail}",
                what=f"{network.title}, {setting.title}: {macs / 1e6:,.1f} million multiply-accumulates in "
                f"the fastest call of {ours}, as a share of those the core does from registers alone "
                f"({ROOF_MACS / roof.min_ms / 1e6:.0f} GMAC/s)",
                value=(macs / times[ours].min_ms) / (ROOF_MACS / roof.min_ms),
                unit="of the roof",
            )
        )
    return claims


def thread_claims(network: Network, setting: Setting, one: Times, times: Mapping[str, Times]) -> list[Claim]:
    """What a second thread brings, and the ratio to the best peer on two.

    Args:
        network: What was raced.
        setting: With these instructions.
        one: Edgewright on one thread, in the same race.
        times: Everyone on two.
    """
    ours = times[f"{OURS} {setting.paths[0]}"]
    value, goal = one.min_ms / ours.min_ms, TWO_THREADS.get(network.name)
    return [
        Claim(
            id=f"threads.{network.name}",
            what=f"{network.title}, {setting.title}: {OURS} {setting.paths[0]} on one thread over two, "
            "fastest calls",
            value=value,
            unit="times",
            interval=_middle(one.ratios(ours)),
            goal=goal,
            reached=None if goal is None else value >= goal,
        ),
        _ratio(f"ratio.{network.name}.threads2", network, setting, times, None, "two threads"),
    ]


def depthwise_claims(setting: Setting, found: Mapping[Network, Mapping[str, Times]]) -> list[Claim]:
    """How fast depthwise convolution is, in the slower of the networks that are made of it.

    Args:
        setting: With these instructions.
        found: The races of those networks on one thread.
    """
    judged = setting.name == "avx2"
    speeds = []
    for network, times in found.items():
        macs = cost(network)[0]
        ours = f"{OURS} {setting.paths[0]}"
        best = min(_peers(times).values(), key=lambda t: t.min_ms)
        speeds.append((macs / times[ours].min_ms / 1e6, macs / best.min_ms / 1e6, network.title))
    if not speeds:
        return []
    value, peer, title = min(speeds)
    return [
        Claim(
            id=f"depthwise.gmacs{'' if judged else f'.{setting.name}'}",
            what=f"{title}, {setting.title}, float32 in and out, one thread, fastest call; the best peer: "
            f"{peer:.0f} GMAC/s; lowest and highest of the sizes",
            value=value,
            unit="GMAC/s",
            interval=(value, max(speeds)[0]),
            goal=DEPTHWISE_GMACS if judged else None,
            reached=value >= DEPTHWISE_GMACS if judged else None,
        )
    ]


def _peers(times: Mapping[str, Times]) -> dict[str, Times]:
    return {n: t for n, t in times.items() if not n.startswith((OURS, "roof"))}


def _ratio(
    name: str,
    network: Network,
    setting: Setting,
    times: Mapping[str, Times],
    goal: float | None,
    threads: str,
) -> Claim:
    ours = times[f"{OURS} {setting.paths[0]}"]
    peers = _peers(times)
    best = min(peers, key=lambda n: peers[n].min_ms)
    ratio = peers[best].min_ms / ours.min_ms
    return Claim(
        id=name,
        what=f"{network.title}, {setting.title}, {threads}: {best}, "
        f"the best peer, over {OURS} {setting.paths[0]}, fastest calls; lowest and highest of the rounds "
        "without the outer tenths" + (f"; {network.aim} is aimed at" if goal and network.aim else ""),
        value=ratio,
        unit="times",
        interval=_middle(peers[best].ratios(ours)),
        goal=goal,
        reached=None if goal is None else ratio >= goal,
    )


def _middle(ratios: list[float]) -> tuple[float, float]:
    """Lowest and highest without the outer tenths."""
    ratios = sorted(ratios)
    tenth = len(ratios) // 10
    return ratios[tenth], ratios[-1 - tenth]
