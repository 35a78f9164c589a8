/**
 * What a Weave Net router reports of itself (pure).
 *
 * @module
 */

/** Where the allocation of addresses stands. Only a `ready` one answers. */
export type IpamState =
  | "ready"
  /** A majority of the peers has to be connected before the first address is given. */
  | "awaiting consensus"
  /** Nobody has asked for an address yet. */
  | "idle"
  /** All of the range belongs to peers that cannot be reached. */
  | "owners unreachable"
  /** The router has no addresses of its own left, and waits for other peers to give it some. */
  | "waiting for addresses";

/** A connection to another peer, or an attempt at one. */
export interface PeerConnection {
  /** The peer's address, without the port. */
  readonly peer: string;
  /** `"established"`, `"pending"`, `"failed"`, `"retrying"`, `"connecting"`. */
  readonly state: string;
  /** What Weave says about it: the kind of the connection, or why it failed. */
  readonly info: string;
}

/** The state of a router. */
export interface WeaveReport {
  /** The router's name in the network, a MAC address in form. */
  readonly name: string;
  readonly version: string;
  /** Whether it has begun to connect to its peers. */
  readonly started: boolean;
  /** Whether a password is set. */
  readonly encrypted: boolean;
  /** Peers of the network that the router knows, itself included. */
  readonly peers: readonly { readonly name: string; readonly nickname: string }[];
  /** The peers that it was told to connect to, as they were written. */
  readonly targets: readonly string[];
  /** Without the failure to connect to itself, which is none. */
  readonly connections: readonly PeerConnection[];
  readonly ipam: {
    readonly state: IpamState;
    /** `"10.32.0.0/12"`. */
    readonly range: string;
    /** How many peers must agree before the first address is given; absent afterwards. */
    readonly quorum?: number;
    /** How many of them are known; absent afterwards. */
    readonly known?: number;
  };
}

/**
 * Reads `GET /report`, asked for as JSON. What is missing is empty.
 *
 * @returns undefined when the text is not a router's report
 */
export function parseReport(text: string): WeaveReport | undefined {
  const report = parseObject(text);
  const router = objectIn(report.Router);
  const ipam = objectIn(report.IPAM);
  if (typeof router.Name !== "string") return undefined;
  return {
    name: router.Name,
    version: textIn(report.Version),
    started: report.Ready !== false,
    encrypted: router.Encryption === true,
    peers: listIn(router.Peers).map(objectIn).map((peer) => ({
      name: textIn(peer.Name),
      nickname: textIn(peer.NickName),
    })),
    targets: listIn(router.Targets).map(textIn),
    connections: listIn(router.Connections).map(objectIn)
      .map((connection) => ({
        peer: withoutPort(textIn(connection.Address)),
        state: textIn(connection.State),
        info: textIn(connection.Info).replaceAll(/\s+/g, " ").trim(),
      }))
      .filter(({ info }) => !/cannot connect to ourself/.test(info)),
    ipam: { range: textIn(ipam.Range), ...ipamState(ipam) },
  };
}

function ipamState(ipam: Fields): Omit<WeaveReport["ipam"], "range"> {
  const entries = listIn(ipam.Entries).map(objectIn);
  if (entries.length > 0) {
    const owned = entries.some(({ Size, IsKnownPeer }) => Number(Size) > 0 && IsKnownPeer === true);
    if (!owned) return { state: "owners unreachable" };
    const pending = listIn(ipam.PendingAllocates).length > 0;
    return { state: pending ? "waiting for addresses" : "ready" };
  }
  const paxos = objectIn(ipam.Paxos);
  if (Object.keys(paxos).length === 0) return { state: "idle" };
  return {
    state: "awaiting consensus",
    ...typeof paxos.Quorum === "number" ? { quorum: paxos.Quorum } : {},
    ...typeof paxos.KnownNodes === "number" ? { known: paxos.KnownNodes } : {},
  };
}

/** Reads `GET /ip`: the addresses, with their prefix lengths, by who owns them. */
export function parseOwners(text: string): ReadonlyMap<string, readonly string[]> {
  const owned = listIn(parseObject(text).owned).map(objectIn);
  return new Map(owned.map(({ containerid, addrs }) => [
    textIn(containerid),
    listIn(addrs).map(textIn),
  ]));
}

/** `192.0.2.10:6783`, `[2001:db8::1]:6783` or either without the port. */
export function withoutPort(address: string): string {
  const bracketed = /^\[(.*)\](?::\d+)?$/.exec(address)?.[1];
  if (bracketed !== undefined) return bracketed;
  return /^[^:]*:\d+$/.test(address) ? address.replace(/:\d+$/, "") : address;
}

type Fields = Readonly<Record<string, unknown>>;

function parseObject(text: string): Fields {
  try {
    return objectIn(JSON.parse(text));
  } catch {
    return {};
  }
}

function objectIn(value: unknown): Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as Fields
    : {};
}

function listIn(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function textIn(value: unknown): string {
  return typeof value === "string" ? value : "";
}
