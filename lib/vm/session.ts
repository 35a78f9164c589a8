/**
 * Sockets of the host that a call keeps open, for one VM or for many.
 *
 * @module
 */

import type { Firewall } from "../firewall/firewall.ts";
import { isInstalled, openFirewall } from "../firewall/open.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { Registry } from "./record/elsewhere.ts";
import { type HostPaths, hostPaths } from "./record/paths.ts";
import { SpareNetns } from "./spare-netns.ts";
import type { HostOptions, HostSession } from "./types.ts";

/** How many VMs of a batch share one search of the tracked connections. */
const BATCH = 16;

interface SessionOptions {
  readonly batch?: boolean;
  readonly shared?: OpenSession;
}

/**
 * The sockets, each opened at its first use, in the network namespace that the calling thread is in
 * then.
 */
export class OpenSession implements HostSession {
  readonly batch: boolean;
  readonly #stack = new DisposableStack();
  readonly #shared: OpenSession | undefined;
  #nl: NetlinkConnection | undefined;
  readonly #firewalls = new Map<FirewallKind | undefined, Firewall>();
  readonly #kept = new Map<string, Disposable>();

  /**
   * @param batch for many VMs: the search of all tracked connections is delayed and done for several
   * of them at once, at the latest when the session ends
   * @param shared whose sockets are used; it outlives this session
   */
  constructor({ batch = false, shared }: SessionOptions = {}) {
    this.batch = batch;
    this.#shared = shared;
  }

  get spareNetns(): SpareNetns | undefined {
    return this.#shared?.keep("spare namespace", () => new SpareNetns());
  }

  get nl(): NetlinkConnection {
    return this.#shared?.nl ?? (this.#nl ??= this.#stack.use(NetlinkConnection.open()));
  }

  async firewall(kind?: FirewallKind): Promise<Firewall> {
    const open = this.#firewalls.get(kind);
    if (open !== undefined) return open;
    const firewall = this.#shared === undefined
      ? this.#stack.use(await openFirewall({ kind }))
      : await this.#borrow(this.#shared, kind);
    if (this.batch) firewall.flows.putOff(BATCH);
    if (kind === undefined) this.#firewalls.set(kind, firewall);
    this.#firewalls.set(firewall.kind, firewall);
    return firewall;
  }

  async firewalls(kind: FirewallKind): Promise<readonly Firewall[]> {
    const firewall = await this.firewall(kind);
    if (!firewall.isMixed()) return [firewall];
    const other = kind === "nftables" ? "iptables" : "nftables";
    return await isInstalled(other) ? [firewall, await this.firewall(other)] : [firewall];
  }

  async #borrow(shared: OpenSession, kind: FirewallKind | undefined): Promise<Firewall> {
    const firewall = await shared.firewall(kind);
    this.#stack.defer(() => firewall.flows.settle());
    return firewall;
  }

  share<T extends Disposable>(key: string, make: () => T): T {
    return this.#shared === undefined ? this.keep(key, make) : this.#shared.keep(key, make);
  }

  keep<T extends Disposable>(key: string, make: () => T): T {
    const kept = this.#kept.get(key);
    if (kept !== undefined) return kept as T;
    const made = this.#stack.use(make());
    this.#kept.set(key, made);
    return made;
  }

  [Symbol.dispose](): void {
    this.#stack[Symbol.dispose]();
  }
}

/** The host that a call works on. */
export interface Host extends HostPaths, Disposable {
  readonly session: HostSession;
  /** Whether nothing may be changed: what planning would install is only planned. */
  readonly onlyLooks?: true;
}

/**
 * The session of a call's options; where they have none, one that ends with the result.
 *
 * @param how that one is opened
 */
export function sessionOf(
  options: HostOptions,
  how?: SessionOptions,
): { readonly session: HostSession } & Disposable {
  if (options.session !== undefined) {
    return { session: options.session, [Symbol.dispose]: () => {} };
  }
  const session = new OpenSession(how);
  return { session, [Symbol.dispose]: () => session[Symbol.dispose]() };
}

/** The host of a call's options. Disposing of it does not close a session from the options. */
export function openHost(options: HostOptions): Host {
  const own = sessionOf(options);
  const { session } = own;
  return {
    ...hostPaths(options),
    session,
    registry: session.keep("registry", () => new Registry()).path,
    [Symbol.dispose]: () => own[Symbol.dispose](),
  };
}
