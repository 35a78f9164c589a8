/**
 * Attacks as rows of a table, and how each is tried: what is sent must not arrive, while the same
 * thing in an honest way does.
 */

import type { PartyName, Scene, State } from "./attack-scene.ts";
import { eventually } from "./machine.ts";

/** Parties by name, for rows to build their frames of. */
export type Parties = (name: PartyName) => ReturnType<Scene["party"]>;

interface AttackBase {
  /** Who does what to whom. */
  readonly name: string;
  readonly from: PartyName;
  /** In which states of the host it must fail; all when absent. */
  readonly states?: readonly State[];
}

/** Frames that must not arrive. */
export interface FrameAttack extends AttackBase {
  /** Where none of them may arrive. */
  readonly to: PartyName;
  readonly frames: (party: Parties) => readonly Uint8Array[];
  /** Frames that do arrive there after them, from the attacker or somebody else. */
  readonly control: {
    readonly from?: PartyName;
    readonly frames: (party: Parties) => readonly Uint8Array[];
  };
  /**
   * Whether they are routed or translated on their way: then they are known by
   * {@linkcode FORGED} and {@linkcode HONEST} at the end of their payload.
   */
  readonly routed?: true;
}

/** Anything else that must not work: a connection, a change of what the host believes. */
export interface AttemptAttack extends AttackBase {
  /** Whether it worked. */
  readonly attempt: (scene: Scene) => Promise<boolean>;
  /** Whether the same works in an honest way. */
  readonly control: (scene: Scene) => Promise<boolean>;
}

export type Attack = FrameAttack | AttemptAttack;

const encoder = new TextEncoder();
/** What is in frames that change on their way: an attack's, and its control's. */
export const [FORGED, HONEST] = [encoder.encode("forged--"), encoder.encode("honest--")] as const;

/** How many frames the queues on the way hold. */
const BATCH = 64;
/** How long a frame may be on its way. */
const ARRIVAL_MS = 5000;

/** Tries attacks in a state of the host, and says which worked, or could not be told. */
export async function tryAttacks(
  scene: Scene,
  attacks: readonly Attack[],
  state: State,
): Promise<string[]> {
  const failures: string[] = [];
  await scene.enter(state);
  for (const attack of attacks) {
    if (attack.states?.includes(state) === false) continue;
    try {
      const worked = "attempt" in attack
        ? await attempt(scene, attack)
        : await sendFrames(scene, attack);
      if (worked !== undefined) failures.push(`${attack.name}: ${worked}`);
    } catch (error) {
      failures.push(
        `${attack.name}: no control: ${error instanceof Error ? error.message : error}`,
      );
    }
  }
  return failures;
}

async function attempt(scene: Scene, attack: AttemptAttack): Promise<string | undefined> {
  if (await attack.attempt(scene)) return "it worked";
  return await attack.control(scene) ? undefined : "its control failed";
}

async function sendFrames(scene: Scene, attack: FrameAttack): Promise<string | undefined> {
  const { from, to, control, routed = false } = attack;
  const party: Parties = (name) => scene.party(name);
  const { tap } = party(to);
  const [frames, honest] = [attack.frames(party), control.frames(party)];
  if (frames.length === 0 || honest.length === 0) return "it sends nothing";
  const arrivals = (sent: readonly Uint8Array[], mark: Uint8Array) =>
    routed
      ? tap.heard.filter((hex) => hex.includes(mark.toHex())).length
      : sent.filter((frame) => tap.heard.some((hex) => hex.startsWith(frame.toHex()))).length;
  tap.clear();
  for (let start = 0; start < frames.length; start += BATCH) {
    for (const frame of frames.slice(start, start + BATCH)) party(from).tap.send(frame);
    await scene.fence(from);
  }
  // The same way after them: what has not come before these does not come.
  const { from: controller = from } = control;
  for (const frame of honest) party(controller).tap.send(frame);
  await eventually(ARRIVAL_MS, `${controller}'s honest frames reach ${to}`, () => {
    return arrivals(honest, HONEST) >= honest.length;
  });
  const arrived = arrivals(frames, FORGED);
  return arrived > 0 ? `${arrived} of ${frames.length} frames arrived` : undefined;
}

/** Whether a page is had, within a second. */
export async function reaches(scene: Scene, from: PartyName, url: string): Promise<boolean> {
  const { machine, netns } = scene.party(from);
  const where = netns === undefined ? {} : { netns };
  return (await machine.fetch(url, { timeoutSeconds: 1, ...where })).status > 0;
}
