/**
 * The layers of each kind of attachment, in the order in which they are made.
 *
 * @module
 */

import {
  type AddressAttachment,
  type BridgeAttachment,
  servedAddress,
  servedBridge,
} from "../record/address.ts";
import type { Both } from "../record/attachment.ts";
import { asksForLimits } from "../limits.ts";
import { isPoliced, servedVm } from "../record/served.ts";
import type { Host } from "../session.ts";
import { guardLayer } from "./guard.ts";
import type { Context, Layer } from "./layer.ts";
import { netnsLayer } from "./netns.ts";
import { networkLayer } from "./network.ts";
import { rulesLayer } from "./rules.ts";
import { sysctlLayer } from "./sysctls.ts";
import { wireLayer } from "./wire.ts";

/** What a VM on its networks consists of. */
const VM_LAYERS: readonly Layer<Both>[] = [
  netnsLayer,
  networkLayer,
  wireLayer,
  guardLayer,
  rulesLayer({ served: servedVm, leaves: true, require: requirePolicy, withoutLimits }),
  sysctlLayer(servedVm),
];

/** What mapping ports to an address consists of. */
const ADDRESS_LAYERS: readonly Layer<AddressAttachment>[] = [
  rulesLayer({ served: servedAddress }),
  sysctlLayer(servedAddress),
];

/** What letting a bridge pass consists of. */
const BRIDGE_LAYERS: readonly Layer<BridgeAttachment>[] = [
  rulesLayer({ served: servedBridge }),
  sysctlLayer(servedBridge),
];

/** The layers of each kind. A session that keeps others, as tests do, has no kernel. */
export class Layers implements Disposable {
  readonly vm: readonly Layer<Both>[] = VM_LAYERS;
  readonly address: readonly Layer<AddressAttachment>[] = ADDRESS_LAYERS;
  readonly bridge: readonly Layer<BridgeAttachment>[] = BRIDGE_LAYERS;

  [Symbol.dispose](): void {}
}

/** The layers that verbs work with on a host. */
export function layersOf({ session }: Pick<Host, "session">): Layers {
  return session.keep("layers", () => new Layers());
}

/** What both kinds have: they need nothing of a VM's namespace. */
export function servingLayers<B>(layers: readonly Layer<B>[]): Layer<B>[] {
  return layers.filter(({ name }) => name === "rules" || name === "sysctls");
}

/** Refuses a policy that the VM's networks leave no means to enforce. */
export async function requirePolicy({ host }: Context<Both>, to: Both): Promise<void> {
  if (!isPoliced(to.spec.policy)) return;
  const { requireEnforceable } = await import("../policy.ts");
  requireEnforceable(to, { hostNl: host.session.nl, note: (text) => host.note(text) });
}

function withoutLimits(at: Both, index: number): Both | undefined {
  if (asksForLimits(at.spec.policy)) return undefined;
  const networks = at.facts.networks.map((fact, place) => {
    const { limits: _, ...rest } = fact;
    return place === index ? rest : fact;
  });
  return { ...at, facts: { ...at.facts, networks } };
}
