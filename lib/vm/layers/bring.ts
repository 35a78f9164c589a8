/**
 * The one order of things: an attachment is brought from what it is to what it is to be, layer by
 * layer, and looked at in the same order.
 *
 * @module
 */

import { checkpoint } from "../../checkpoint.ts";
import { asError, TapkitError } from "../../errors.ts";
import { isSame } from "../../same.ts";
import type { Change, Difference, LayerName } from "../types.ts";
import type { Context, Layer } from "./layer.ts";

/** From what to what an attachment is to be brought. */
export interface Course<B> {
  /** Absent where nothing is there. */
  readonly from?: B | undefined;
  readonly to: B;
}

/** One that was planned: what it makes is known, and nothing was touched. */
export interface PlannedCourse<B> extends Course<B> {
  /** The layers that are made, or made anew. */
  readonly made: ReadonlySet<LayerName>;
}

/** What was done. */
export interface Brought<B> {
  readonly at: B;
  readonly changes: readonly Change[];
}

/**
 * Plans: finds out which layers are made anew, and what they are going to make. What the undo stack
 * gets after this is undone before the settings of the kernel are.
 *
 * @throws {TapkitError} for what cannot be made; nothing was touched
 */
export async function planCourse<B>(
  layers: readonly Layer<B>[],
  context: Context<B>,
  course: Course<B>,
): Promise<PlannedCourse<B>> {
  const lost = context.found.filter(({ repair }) => repair === "recreate");
  const made = new Set(
    course.from === undefined
      ? layers.map(({ name }) => name)
      : standingOn(layers, lost.map(({ layer }) => layer)),
  );
  let { to } = course;
  for (const layer of layers) {
    if (made.has(layer.name)) to = await layer.plan?.(context, to, course.from) ?? to;
  }
  for (const layer of layers) {
    layer.begin?.(context, made.has(layer.name) ? undefined : course.from, to);
  }
  return { ...course, to, made };
}

/** These layers, and all that stand on them. */
function standingOn<B>(layers: readonly Layer<B>[], lowest: readonly LayerName[]): LayerName[] {
  const found: LayerName[] = [];
  for (const { name, on } of layers) {
    if (lowest.includes(name) || on !== undefined && found.includes(on)) found.push(name);
  }
  return found;
}

/** What is to be done to a layer that stays: repairs, and what is wanted otherwise. */
interface Due {
  readonly found: readonly Difference[];
  readonly differs: boolean;
}

/** What is to be done to a layer that is not made; undefined for nothing. */
function dueTo<B>(
  layer: Layer<B>,
  { found: all, cutOff }: Context<B>,
  from: B,
  at: B,
): Due | undefined {
  const found = all.filter(({ layer: of, repair }) =>
    repair === "live" && (of === layer.name || layer.also?.includes(of))
  );
  const differs = !isSame(layer.want(from), layer.want(at));
  return found.length > 0 || differs || cutOff !== undefined ? { found, differs } : undefined;
}

function madeIn<B>(layer: Layer<B>, from: B | undefined, at: B): Change {
  const change = from === undefined ? "created" : "recreated";
  return { layer: layer.name, object: layer.describe(at), change };
}

function changedIn<B>(layer: Layer<B>, { found, differs }: Due, at: B): Change[] {
  return [
    ...found.map(({ object }): Change => ({ layer: layer.name, object, change: "repaired" })),
    ...differs
      ? [{ layer: layer.name, object: layer.describe(at), change: "changed" } as const]
      : [],
  ];
}

/**
 * What {@linkcode bring} is going to do. It may find that a layer has to be made anew only when it
 * changes it.
 */
export function changesOf<B>(
  layers: readonly Layer<B>[],
  context: Context<B>,
  { from, to, made }: PlannedCourse<B>,
): Change[] {
  return layers.flatMap((layer) => {
    if (from === undefined || made.has(layer.name)) return [madeIn(layer, from, to)];
    const due = dueTo(layer, context, from, to);
    return due === undefined ? [] : changedIn(layer, due, to);
  });
}

/** What {@linkcode takeAway} is going to do. */
export function removalsOf<B>(layers: readonly Layer<B>[], from: B): Change[] {
  return layers.toReversed().map((layer) => ({
    layer: layer.name,
    object: layer.describe(from),
    change: "removed",
  }));
}

/**
 * Does what was planned. The caller unwinds the undo stack when this fails.
 *
 * @param record writes down what is going to be made, each time that is planned anew
 */
export async function bring<B>(
  layers: readonly Layer<B>[],
  context: Context<B>,
  course: PlannedCourse<B>,
  record: (course: PlannedCourse<B>) => void | Promise<void>,
): Promise<Brought<B>> {
  const { from, made } = course;
  const changes: Change[] = [];
  let at = course.to;
  if (from !== undefined && made.size > 0) {
    const lost = layers.filter(({ name }) => made.has(name));
    await takeAway(lost, { ...context, remaking: true }, from);
  }
  for (const layer of layers) {
    const { name } = layer;
    if (from === undefined || made.has(name)) {
      // What else this process does, as answering guests' DHCP, waits for one layer at most.
      await checkpoint(context.host.signal);
      at = await layer.make(context, at, from);
      changes.push(madeIn(layer, from, at));
      continue;
    }
    const due = dueTo(layer, context, from, at);
    if (due === undefined) continue;
    const brought = await layer.change({ ...context, found: due.found }, from, at);
    if (brought === "recreate" && context.liveOnly) {
      throw new TapkitError(`${layer.describe(at)} cannot be repaired while the guest runs`);
    }
    if (brought === "recreate") {
      const lost: Difference = {
        layer: name,
        object: layer.describe(at),
        problem: "has to be made anew",
        repair: "recreate",
      };
      const wider = { ...context, found: [...context.found, lost] };
      const again = await planCourse(layers, wider, course);
      await record(again);
      return await bring(layers, wider, again, record);
    }
    at = brought;
    changes.push(...changedIn(layer, due, at));
  }
  return { at, changes };
}

/**
 * Takes layers of an attachment away, past failures: each before that which it stands on. Those that
 * do not stand on each other go together, as the kernel makes some of them wait.
 *
 * @throws {TapkitError} naming everything that failed
 */
export async function takeAway<B>(
  layers: readonly Layer<B>[],
  context: Context<B>,
  from: B,
): Promise<void> {
  const failures: unknown[] = [];
  let left = layers.filter(({ take }) => take !== undefined);
  while (left.length > 0) {
    const ending = left.filter(({ outlives }) => !outlives);
    const upmost = ending.length === 0
      ? left
      : ending.filter(({ name }) => !ending.some(({ on }) => on === name));
    left = left.filter((layer) => !upmost.includes(layer));
    const taken = await Promise.all(upmost.map(async (layer) => {
      try {
        return await layer.take!(context, from);
      } catch (error) {
        return [error];
      }
    }));
    failures.push(...taken.flat());
  }
  if (failures.length > 0) throw leftBehind(failures);
}

function leftBehind(failures: readonly unknown[]): TapkitError {
  const reasons = new Set(failures.map((error) => asError(error).message));
  const mend = failures.map((error) => error instanceof TapkitError ? error.mend : undefined)
    .find((mend) => mend !== undefined);
  return new TapkitError(`not everything could be taken away: ${[...reasons].join("; ")}`, {
    mend: mend === undefined
      ? "run the command again when the causes are gone"
      : `${mend}, then run the command again`,
    cause: failures[0],
  });
}

/**
 * Compares an attachment with what is there, layer by layer.
 *
 * @param only the layers to look at; all unless it is said
 */
export async function look<B>(
  layers: readonly Layer<B>[],
  context: Context<B>,
  at: B,
  only?: readonly LayerName[],
): Promise<Difference[]> {
  const found: Difference[] = [];
  for (const layer of layers) {
    if (only !== undefined && !only.includes(layer.name)) continue;
    await checkpoint(context.host.signal);
    found.push(...await layer.observe(context, at));
    // Without its namespace nothing of it is to be seen.
    if (found.some(({ layer }) => layer === "netns")) break;
  }
  return found;
}

/** Whether the namespace of an attachment is there, where it has one. */
export async function hasNamespace<B>(
  layers: readonly Layer<B>[],
  context: Context<B>,
  at: B,
): Promise<boolean> {
  return (await look(layers, context, at, ["netns"])).length === 0;
}
