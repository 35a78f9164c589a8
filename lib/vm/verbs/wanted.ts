/**
 * What an attachment is to be, by a request and by what is recorded: its ports claimed, and whatever
 * follows from both known.
 *
 * @module
 */

import { publisherOf, withPorts } from "../../cni/plan.ts";
import { addressOf } from "../../inet/ip.ts";
import { TapkitError } from "../../errors.ts";
import { formatHostPort, type PortMapping, subtractPorts } from "../../inet/ports.ts";
import { isSame } from "../../same.ts";
import { findHostEnd, reachableByPorts } from "../network/host-end.ts";
import { requirePolicy } from "../layers/kinds.ts";
import type { Context } from "../layers/layer.ts";
import { limitsOf } from "../limits.ts";
import { claimPorts, verifyClaims } from "../ports.ts";
import type { Both, Claim, NetworkFact, Spec } from "../record/attachment.ts";
import { claimsBy, portsOf } from "../record/derive.ts";
import { type Identity, ownNetnsPath } from "../record/identity.ts";
import { isPoliced, unboundPorts } from "../record/served.ts";
import { mergeSpec, specOf, withRequest } from "../record/spec.ts";
import { readPorts } from "../request.ts";
import { supervised } from "../running.ts";
import type { AttachRequest } from "../types.ts";

/** The `-- VMM` call that an attachment is for, and goes with; none where it is to stay. */
export interface Running {
  readonly run?: string | undefined;
}

/** What is wanted, and of whom. */
export interface Wanting {
  readonly id: Identity;
  /** What the VM has; absent where nothing of it is there. */
  readonly from: Both | undefined;
  /** Whether its networks are made anew. */
  readonly remade: boolean;
  readonly request: AttachRequest;
  readonly running: Running;
  /** What was wanted of it before, where nothing of it is there any more. */
  readonly spec?: Spec | undefined;
}

/** The ports of a request, where 0 asks for one to be chosen. */
export function askedPorts({ ports = "none" }: AttachRequest): PortMapping[] {
  return ports === "none" ? [] : readPorts(ports);
}

/**
 * What the attachment is to be. The caller holds the host's lock until that is recorded.
 *
 * @throws {InputError} for policies that do not go together
 * @throws {TapkitError} for what cannot change while the VM is attached
 * @throws {PortConflictError} when somebody has one of the ports
 */
export async function wantedOf(context: Context<Both>, wanting: Wanting): Promise<Both> {
  const { host } = context;
  const { id, from, remade, request, running } = wanting;
  const asked = request.firewall ?? from?.spec.firewall ?? wanting.spec?.firewall;
  const firewall = await host.session.firewall(asked);
  const merged = from !== undefined
    ? mergeSpec(from, request)
    : wanting.spec !== undefined
    ? withRequest(wanting.spec, request)
    : specOf(request, id, firewall.kind);
  const first = from?.facts.networks[0];
  const held = merged.claims;
  const attach = request.ports === undefined
    ? held.filter(({ by }) => by === "attach")
    : await claimPorts(host, firewall, {
      owner: id.name,
      by: "attach",
      asked: askedPorts(request),
      had: held,
      addresses: first?.link?.addresses.map(({ address }) => addressOf(address)),
    });
  const claims = isSame(attach, held.filter(({ by }) => by === "attach"))
    ? held
    : [...attach, ...held.filter(({ by }) => by === "map")];
  if (remade || from === undefined && claims === held) {
    await verifyClaims(host, firewall, id.name, claims);
  }
  const spec = withRun(context, { ...merged, claims }, wanting);
  if (from === undefined) return { spec, facts: newFacts(spec) };
  const had = { ...from, spec: { ...spec, claims: from.spec.claims } };
  const to = refreshed(context, from, await withClaims(had, claims));
  // Where the networks are made anew, that is for them to say.
  if (!remade && !isSame(to.spec.policy, from.spec.policy)) await requirePolicy(context, to);
  return to;

  function withRun({ host }: Context<Both>, spec: Spec, { from }: Wanting): Spec {
    const { run: had, ...rest } = spec;
    // What a call of -- VMM attached, and could not take away, is the next one's, or stays.
    const heir = from === undefined || had !== undefined
      ? running.run ?? (from !== undefined && supervised(host, id.name) ? had : undefined)
      : undefined;
    return heir === undefined ? rest : { ...rest, run: heir };
  }
}

function newFacts({ id, netns }: Spec): Both["facts"] {
  return {
    netns: { path: netns ?? ownNetnsPath(id), given: netns !== undefined },
    networks: [],
    dns: { nameservers: [], search: [] },
  };
}

/**
 * An attachment with other claims, and what plugins are told of them.
 *
 * @throws {TapkitError} where a plugin publishes ports that cannot be told of others, or Docker publishes
 * one that is to go
 */
export async function withClaims(at: Both, claims: readonly Claim[]): Promise<Both> {
  const [first, ...others] = at.facts.networks;
  const spec = { ...at.spec, claims };
  const told = (of: readonly Claim[]) => unboundPorts(claimsBy(of, "attach"), first?.link);
  refuseWithdrawn(at.spec.id.name, first, claims);
  const isPlugins = first !== undefined && publisherOf(first.attachment) === "plugin";
  if (!isPlugins || isSame(told(at.spec.claims), told(claims))) return { ...at, spec };
  (await import("../network/chains-again.ts")).requireRepublishable(at);
  const attachment = withPorts(first.attachment, told(claims));
  return { spec, facts: { ...at.facts, networks: [{ ...first, attachment }, ...others] } };
}

/** What Docker publishes stays as long as the container does. */
function refuseWithdrawn(
  name: string,
  first: NetworkFact | undefined,
  claims: readonly Claim[],
): void {
  const [gone] = subtractPorts(first?.docker?.ports ?? [], portsOf(claims));
  if (gone === undefined) return;
  throw new TapkitError(
    `Docker publishes host port ${formatHostPort(gone)} as long as the VM's container runs`,
    { mend: `run attach-vm ${name} --remove, then attach it with the ports that it is to have` },
  );
}

/** An attached VM with what the host's side of its interfaces is by now, as far as that matters. */
function refreshed(context: Context<Both>, from: Both, to: Both): Both {
  const { host: { session: { nl: hostNl } }, vm } = context;
  const { policy } = to.spec;
  const vmNl = isPoliced(policy) && !isSame(policy, from.spec.policy)
    ? vm.find(to.facts.netns)?.nl
    : undefined;
  const networks = to.facts.networks.map((fact): NetworkFact => {
    const { limits: _, ...rest } = fact;
    if (fact.reach === undefined || fact.link === undefined) return fact;
    const end = vmNl && findHostEnd(fact.attachment.ifName, { hostNl, vmNl });
    const reach = end === undefined ? fact.reach : {
      ...fact.reach,
      hostEnd: end.link.name,
      ...end.master?.kind === "bridge" ? { bridge: end.master.name } : {},
    };
    const limits = limitsOf(reach, policy, hostNl);
    return { ...rest, reach, ...limits === undefined ? {} : { limits } };
  });
  return reachableByPorts(hostNl, { ...to, facts: { ...to.facts, networks } });
}
