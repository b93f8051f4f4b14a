"""Agents that are trained against perturbed observations, and attacked: SA-MDP.

    python -m benchmarks.papers.sa_mdp [--seeds N] [--quick] [--out DIR]

State-adversarial training (Zhang et al. 2020, arXiv:2003.08938) on environments of
gymnax (`pip install -e '.[rl]'`). Each agent is trained inside one `jit`, environments
included, all seeds side by side with `vmap`; the plain agent beside it differs in
kappa = 0 alone:

- SA-DQN on Catch, double DQN, replay without priorities, 10 x 5 pixels clipped to
  [0, 1], eps 0.08, in training 0.12, kappa 0.4, CROWN-IBP, 8,000 iterations of 16
  environments;
- SA-DQN on CartPole as a camera sees it: each of its four numbers is a spot of light on
  a strip of 16 pixels. eps 0.025, in training 0.05, kappa 0.01, CROWN-IBP, 15,000
  iterations of 8 environments. Both agents practise on a track half as long, from
  starts anywhere on it, and are tested on the usual one from the usual starts: without
  that, agents of both kinds drift off the track under any steady push;
- SA-DQN on CartPole from the four numbers themselves, else as before, eps (0.02, 0.04,
  0.006, 0.04) of position, velocity, angle and its velocity, in training 2.5 times as
  large, kappa 0.004;
- SA-PPO on Pendulum, the convex solver with IBP, eps 0.4 of the states' running
  deviation, kappa 0.0003, 100 updates of 16 x 128 steps.

Attacks take 10 steps: random, critic, greedy (the authors' on DQN), MAD, robust Sarsa
of two weights with and without MAD, and two kinds beyond the paper. `always` pulls
towards one action all the time. `planned` is an adversary of Catch that looks ahead:
for each of its 250 states a search finds which actions can be brought about, and the
worst of them is chosen backwards from the end. The same with all actions that bounds
cannot exclude is the `certified return`: no adversary gets below it. `strongest` is the
worst attack, seed by seed; `kept` its share of the natural return, both counted from
the floor: on Catch the share of balls that are still caught, on Pendulum what is above
the return of no torque. `actions certified` counts states of natural episodes where no
perturbation changes the action, `action moves by` how far it may, in units of torque.

Settings were chosen on other seeds than those of the table. In DQN the weights with the
best validation, natural plus attacked with the eps of the table, are kept. `--quick`
trains shortly on Catch and Pendulum, which shows that all runs and nothing else;
`--out` takes the folder for `sa_mdp.json` and the plot `sa_mdp.png`, with the returns
of Catch over eps.

Last result, one core of an x86_64 machine with much else running, jax 0.10.2, gymnax
1.0.1, `--seeds 5`, 1,529 s (885 CPU s); median (range) over 5 seeds, 50 episodes an
attack, 200 on Catch:

    Catch, floor -1       DQN                       SA-DQN
    natural               1.00 (1.00 to 1.00)       1.00 (1.00 to 1.00)
    random                1.00 (1.00 to 1.00)       1.00 (1.00 to 1.00)
    critic                1.00 (1.00 to 1.00)       1.00 (1.00 to 1.00)
    greedy                0.61 (-0.21 to 0.70)      1.00 (1.00 to 1.00)
    always 0              0.55 (0.04 to 1.00)       1.00 (1.00 to 1.00)
    always 1              1.00 (1.00 to 1.00)       1.00 (1.00 to 1.00)
    always 2              0.36 (0.27 to 0.86)       1.00 (1.00 to 1.00)
    planned               -0.20 (-0.60 to 0.20)     1.00 (1.00 to 1.00)
    strongest             -0.20 (-0.60 to 0.20)     1.00 (1.00 to 1.00)
    kept, %               40 (20 to 60)             100 (100 to 100)
    certified return      -1.00 (-1.00 to -1.00)    1.00 (1.00 to 1.00)
    actions certified, %  0 (0 to 0)                100 (100 to 100)

    CartPole, 64 pixels   DQN                       SA-DQN
    natural               500 (500 to 500)          500 (497 to 500)
    random                500 (500 to 500)          500 (497 to 500)
    critic                500 (500 to 500)          500 (500 to 500)
    greedy                156 (105 to 313)          500 (500 to 500)
    always 0              132 (106 to 350)          500 (462 to 500)
    always 1              86 (76 to 141)            491 (460 to 500)
    strongest             86 (76 to 138)            485 (460 to 494)
    kept, %               17 (15 to 28)             98 (92 to 99)
    actions certified, %  0 (0 to 0)                51 (51 to 52)

    CartPole, numbers     DQN                       SA-DQN
    natural               500 (500 to 500)          500 (491 to 500)
    random                500 (500 to 500)          500 (500 to 500)
    critic                500 (500 to 500)          500 (500 to 500)
    greedy                500 (500 to 500)          500 (499 to 500)
    always 0              500 (437 to 500)          500 (464 to 500)
    always 1              500 (499 to 500)          500 (450 to 500)
    strongest             499 (437 to 500)          486 (450 to 500)
    kept, %               100 (87 to 100)           97 (92 to 100)
    actions certified, %  8 (4 to 28)               46 (21 to 47)

    Pendulum, floor -1213 PPO                       SA-PPO
    natural               -152 (-164 to -150)       -157 (-163 to -150)
    random                -188 (-195 to -173)       -229 (-449 to -176)
    critic                -212 (-447 to -160)       -298 (-447 to -191)
    MAD                   -770 (-868 to -749)       -898 (-937 to -874)
    MAD, no noise         -778 (-878 to -758)       -946 (-985 to -898)
    RS 0.03               -824 (-902 to -716)       -394 (-570 to -296)
    RS 0.03 + MAD         -860 (-962 to -708)       -714 (-897 to -551)
    RS 0.3                -1078 (-1209 to -1016)    -992 (-1386 to -857)
    RS 0.3 + MAD          -796 (-836 to -750)       -904 (-958 to -868)
    strongest             -1078 (-1209 to -1016)    -992 (-1386 to -899)
    kept, %               13 (0 to 19)              21 (-16 to 30)
    action moves by       2.15 (2.08 to 2.29)       2.14 (1.97 to 2.31)

On Catch SA-DQN loses nothing on any seed, to no adversary at all: the certified return
is the natural one, and every action on the way has a certificate. DQN keeps 60, 20, 40,
20 and 60 %.

On CartPole from pixels SA-DQN keeps 98, 92, 98, 99 and 92 % of its natural return under
the worst attack of each seed, DQN 28, 15, 17, 17 and 26 %.

From the four numbers there is little to gain at this eps: once it has learned to come
back from anywhere on the track, plain DQN keeps 100, 100, 87, 100 and 100 %. A state of
64 pixels leaves an adversary changes that no position of the cart would make; one of
four numbers leaves it none, and whoever steers by them is off by what was added.

SA-PPO makes little difference with this kappa: robust Sarsa finds its way through both
agents. On 2 other seeds a kappa of 0.002 and of 0.01 lowered the natural return, to
-225 and -490, and the strongest attack still took it to -888 and -1303, and to -1084
and -1239.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import rl

from ..zoo import cartpole, catch, sa_dqn, sa_ppo
from ..zoo.episodes import Attack, along_episode, mean_return, unperturbed
from .command_line import read_options, timed

TRAINING, TEST = 5, 1  # the numbers of their keys; settings were tried with others
# Attacked with, trained with.
EPS_PIXELS, WIDE_PIXELS, KAPPA_PIXELS = 0.08, 0.12, 0.4
SWEPT = np.arange(0.02, 0.2001, 0.02)
EPS_STRIPS, WIDE_STRIPS, KAPPA_STRIPS, PIXELS = 0.025, 0.05, 0.01, 16
EPS_VALUES, WIDE_VALUES = (0.02, 0.04, 0.006, 0.04), (0.05, 0.1, 0.015, 0.1)
KAPPA_VALUES = 0.004
EPS_ACTIONS, KAPPA_ACTIONS = 0.4, 0.0003
REGS = (0.03, 0.3)  # of robust Sarsa: the authors try several, the worst counts


class Task(NamedTuple):
    """An environment, agents on it, and how they are attacked.

    Attributes:
        title: Of the table.
        env: A gymnax environment.
        kappas: Name of an agent -> the weight of its penalty.
        train: `train(key, kappa) -> agent, validations (number, 2)`.
        policy: `policy(agent, state) -> action`.
        attacks: `attacks(agent, learned) -> {name: attack}`.
        certificates: Name -> `certificate(agent, key)`, a number.
        floor: The return that counts as nothing.
        episodes: Of each attack.
        learn: None, or `learn(agent, key)`: what attacks need beside the agent.
        planned: None, or `planned(agent)`: the return against an adversary that looks
            ahead.
        sweep: None, or name -> `sweep(agent, eps)`, drawn over `SWEPT`.
    """

    title: str
    env: Any
    kappas: dict[str, float]
    train: Callable[..., tuple[Any, jax.Array]]
    policy: Callable[..., jax.Array]
    attacks: Callable[..., dict[str, Attack]]
    certificates: dict[str, Callable[[Any, jax.Array], jax.Array]]
    floor: float
    episodes: int
    learn: Callable[..., Any] | None = None
    planned: Callable[..., jax.Array] | None = None
    sweep: dict[str, Callable[[Any, Any], jax.Array]] | None = None


def along(task: Task, measure: Callable[..., jax.Array], episodes: int) -> Any:
    """A certificate: the mean of `measure(agent, state)` over unperturbed episodes."""

    def certificate(agent: Any, key: jax.Array) -> jax.Array:
        policy, of_state = partial(task.policy, agent), partial(measure, agent)
        one = partial(along_episode, task.env, policy, of_state)
        return jax.vmap(one)(jax.random.split(key, episodes)).mean()

    return certificate


def values_task(
    title: str, setting: sa_dqn.Setting, kappa: float, trained: Any, **others: Any
) -> Task:
    """SA-DQN and DQN on an environment, trained for a wider eps than attacked with."""

    def certified(params: Any, state: jax.Array) -> jax.Array:
        q = partial(sa_dqn.values, setting, params)
        margin = rl.action_margin(q, bounds=setting.bounds)
        return 100.0 * (margin(state, jnp.array(setting.eps)) > 0)

    task = Task(
        title,
        setting.env,
        {"DQN": 0.0, "SA-DQN": kappa},
        partial(sa_dqn.train, setting._replace(eps=trained)),
        partial(sa_dqn.greedy, setting),
        lambda params, learned: sa_dqn.attacks(setting, params),
        {},
        **others,
    )
    rate = along(task, certified, 20)
    return task._replace(certificates={"actions certified, %": rate})


def catching(
    setting: sa_dqn.Setting, kappa: float, trained: float, episodes: int
) -> Task:
    """SA-DQN and DQN on Catch, where the worst return is bounded from both sides."""

    def worst(actions: Any, params: Any, eps: Any) -> jax.Array:
        return catch.worst_return(partial(sa_dqn.values, setting, params), actions, eps)

    found = partial(worst, catch.found_actions)
    certified = partial(worst, catch.certified_actions)
    task = values_task(
        f"DQN on Catch, eps {setting.eps:g}",
        setting,
        kappa,
        trained,
        floor=-1.0,
        episodes=episodes,
        planned=lambda params: found(params, setting.eps),
        sweep={"planned attack": found, "certified": certified},
    )
    at_least = {"certified return": lambda params, key: certified(params, setting.eps)}
    return task._replace(certificates=at_least | task.certificates)


def acting(setting: sa_ppo.Setting, kappa: float, episodes: int, steps: int) -> Task:
    """SA-PPO and PPO; robust Sarsa learns for so many steps."""
    env = setting.env

    def learn(agent: sa_ppo.Agent, key: jax.Array) -> Any:
        one = partial(sa_ppo.robust_critic, setting, agent, key, steps=steps)
        return [one(reg=reg) for reg in REGS]

    def attacks(agent: sa_ppo.Agent, critics: Any) -> dict[str, Attack]:
        return sa_ppo.attacks(setting, agent, dict(zip(REGS, critics, strict=True)))

    def change(agent: sa_ppo.Agent, state: jax.Array) -> jax.Array:
        # The environment clips: what lies beyond is no other action.
        found = rl.action_change(
            partial(sa_ppo.mean_action, agent),
            squash=lambda action: jnp.clip(action, -setting.limit, setting.limit),
        )
        return jnp.linalg.norm(found(state, sa_ppo.radius(setting, agent)))

    idle = jax.jit(
        lambda key: mean_return(
            env, lambda state: jnp.zeros(env.num_actions), unperturbed, key, episodes
        )
    )
    task = Task(
        f"PPO on {env.name}, eps {setting.eps:g} of the deviation",
        env,
        {"PPO": 0.0, "SA-PPO": kappa},
        partial(sa_ppo.train, setting),
        sa_ppo.mean_action,
        attacks,
        {},
        float(idle(jax.random.key(TEST))),
        episodes,
        learn,
    )
    return task._replace(certificates={"action moves by": along(task, change, 10)})


def study(task: Task, seeds: int) -> dict[str, Any]:
    """Trains, attacks and certifies agents of several seeds; prints a table."""
    names, test = list(task.kappas), jax.random.key(TEST)
    keys = jnp.tile(jax.random.split(jax.random.key(TRAINING), seeds), len(names))
    kappas = jnp.repeat(jnp.array(list(task.kappas.values())), seeds)
    agents, history = jax.jit(jax.vmap(task.train))(keys, kappas)
    learned = jax.jit(jax.vmap(task.learn))(agents, keys) if task.learn else None

    def of_agents(measure: Callable[..., jax.Array], *rest: Any) -> np.ndarray:
        found = jax.jit(jax.vmap(measure))(agents, *rest)
        return np.asarray(found).reshape(len(names), seeds, *found.shape[1:])

    def returns(attack: str) -> np.ndarray:
        def of_agent(agent: Any, learned: Any) -> jax.Array:
            found = {"natural": unperturbed} | task.attacks(agent, learned)
            policy = partial(task.policy, agent)
            return mean_return(task.env, policy, found[attack], test, task.episodes)

        return of_agents(of_agent, learned)

    first = jax.tree.map(lambda x: x[0], (agents, learned))
    found = {name: returns(name) for name in ["natural", *task.attacks(*first)]}
    if task.planned:
        found["planned"] = of_agents(task.planned)
    natural = found["natural"]
    worst = np.min([x for name, x in found.items() if name != "natural"], 0)
    found["strongest"] = worst
    attacked = list(found)
    found["kept, %"] = 100 * (worst - task.floor) / (natural - task.floor)
    for name, certificate in task.certificates.items():
        found[name] = of_agents(partial(certificate, key=test))
    show(task, found)
    swept = {
        name: of_agents(lambda agent, one=one: jax.lax.map(partial(one, agent), SWEPT))
        for name, one in (task.sweep or {}).items()
    }

    def named(x: Any) -> dict[str, Any]:
        return dict(zip(names, np.asarray(x).tolist(), strict=True))

    return {
        "title": task.title,
        "floor": task.floor,
        "returns": attacked,
        "rows": {name: named(x) for name, x in found.items()},
        "curves": named(history.reshape(len(names), seeds, -1, 2)),
        "swept": {name: named(x) for name, x in swept.items()},
    }


def show(task: Task, found: dict[str, np.ndarray]) -> None:
    """Prints medians and ranges over seeds."""
    names = list(task.kappas)
    print(f"\n{task.title}, {task.episodes} episodes; floor {task.floor:.0f}")
    print(f"{'':22}" + "".join(f"{name:26}" for name in names))
    for label, values in found.items():
        digits = 2 if np.abs(values).max() < 10 else 0
        cells = [
            f"{np.median(x):.{digits}f} ({x.min():.{digits}f} to {x.max():.{digits}f})"
            for x in values
        ]
        print(f"{label:22}" + "".join(f"{cell:26}" for cell in cells), flush=True)


def plot(path: Path, studies: list[dict[str, Any]]) -> None:
    """Draws returns under attack, validations in training, returns over eps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = 15, 4 * len(studies)
    figure, axes = plt.subplots(len(studies), 3, figsize=size, layout="constrained")
    for (bars, curves, swept), found in zip(axes, studies, strict=True):
        draw_bars(bars, found)
        for i, (name, history) in enumerate(found["curves"].items()):
            medians = np.median(np.array(history), 0).T
            done = np.linspace(0, 100, medians.shape[1])
            for line, style, kind in zip(
                medians, ("-", "--"), ("natural", "attacked"), strict=True
            ):
                label = f"{name}, {kind}"
                curves.plot(done, line, style, color=f"C{i}", label=label)
        curves.set(xlabel="% of training", title="validation, median of seeds")
        for style, (kind, of) in zip(("--", ":"), found["swept"].items(), strict=False):
            for i, (name, values) in enumerate(of.items()):
                middle, label = np.median(np.array(values), 0), f"{name}, {kind}"
                swept.plot(SWEPT, middle, style, color=f"C{i}", label=label)
                swept.fill_between(
                    SWEPT, *np.quantile(values, (0, 1), 0), color=f"C{i}", alpha=0.15
                )
        swept.set(xlabel="eps", title="worst return: between the lines")
        swept.set_visible(bool(found["swept"]))
        for axis in (bars, curves, swept):
            axis.set_ylabel("return")
            axis.legend(*axis.get_legend_handles_labels(), fontsize=7)
    figure.savefig(path, dpi=130)


def draw_bars(axes: Any, found: dict[str, Any]) -> None:
    """Draws the returns under all attacks, median and range over seeds."""
    places = np.arange(len(found["returns"]))
    for i, name in enumerate(found["curves"]):
        values = np.array([found["rows"][label][name] for label in found["returns"]])
        middle = np.median(values, 1)
        spread = [middle - values.min(1), values.max(1) - middle]
        heights, low = middle - found["floor"], found["floor"]
        x = places + 0.4 * i
        axes.bar(x, heights, 0.4, low, yerr=spread, label=name, capsize=2)
    axes.set_xticks(places + 0.2, found["returns"], rotation=40, ha="right", fontsize=7)
    axes.set_title(found["title"], fontsize=9)


def tasks(quick: bool) -> list[Task]:
    """What is trained; with `quick` two of the four, for a few seconds each."""
    falling = sa_dqn.Setting(
        catch.Catch(),
        1.0,
        EPS_PIXELS,
        8000,
        validated=EPS_PIXELS,
        bounds=(0.0, 1.0),
        begin=0.1,
        length=0.6,
        crown=1.0,
        ahead=3,
        reward_scale=2.0,
        failure=0.0,
        explore=(0.02, 0.3),
        validate=500,
        episodes=20,
        width=128,
    )
    balancing = sa_dqn.Setting(
        cartpole.CartPole(),
        (0.5, 0.5, 0.05, 0.5),
        EPS_VALUES,
        15000,
        practice=cartpole.CartPole(practice=True),
        validated=EPS_VALUES,
        crown=1.0,
        environments=8,
        ahead=8,
        gamma=0.99,
        margin=0.05,
        explore=(0.02, 0.4),
        validate=1000,
    )
    watching = balancing._replace(
        env=cartpole.CartPole(PIXELS),
        practice=cartpole.CartPole(PIXELS, practice=True),
        scales=1.0,
        eps=EPS_STRIPS,
        validated=EPS_STRIPS,
        bounds=(0.0, 1.0),
    )
    env, _ = gymnax.make("Pendulum-v1")
    swinging = sa_ppo.Setting(env, 2.0, EPS_ACTIONS, 100)
    if quick:
        falling = falling._replace(iterations=1000)
        swinging = swinging._replace(updates=10)
    episodes, steps = (5, 100) if quick else (50, 3000)
    found = [
        catching(falling, KAPPA_PIXELS, WIDE_PIXELS, 4 * episodes),
        values_task(
            f"DQN on CartPole from {4 * PIXELS} pixels, eps {EPS_STRIPS}",
            watching,
            KAPPA_STRIPS,
            WIDE_STRIPS,
            floor=0.0,
            episodes=episodes,
        ),
        values_task(
            f"DQN on CartPole from four numbers, eps {EPS_VALUES}",
            balancing,
            KAPPA_VALUES,
            WIDE_VALUES,
            floor=0.0,
            episodes=episodes,
        ),
        acting(swinging, KAPPA_ACTIONS, episodes, steps),
    ]
    return [found[0], found[-1]] if quick else found


def main() -> None:
    options = read_options(
        "sa_mdp",
        __doc__,
        seeds="of each training",
        quick="two short trainings, 2 seeds",
    )
    with timed():
        seeds = 2 if options.quick else options.seeds
        found = [study(task, seeds) for task in tasks(options.quick)]
    if options.out:
        content = json.dumps(found, indent=1)
        (options.out / "sa_mdp.json").write_text(content + "\n")
        plot(options.out / "sa_mdp.png", found)


if __name__ == "__main__":
    main()
