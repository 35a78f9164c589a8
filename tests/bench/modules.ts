/**
 * How many modules each script makes Deno load: before it starts, and once it has work to do.
 *
 * @module
 */

import { ROOT } from "../support/machine.ts";

/** The modules of one script. */
export interface ModuleCount {
  readonly script: string;
  /** Evaluated before its first line. */
  readonly eager: number;
  /** Those, and what `import()` brings; Deno reads them all at the start. */
  readonly graph: number;
}

interface Dependency {
  readonly code?: { readonly specifier?: string };
  readonly isDynamic?: boolean;
}

interface Info {
  readonly roots: readonly string[];
  readonly redirects: Readonly<Record<string, string>>;
  readonly modules: readonly {
    readonly specifier: string;
    readonly dependencies?: readonly Dependency[];
  }[];
}

/** Counts the modules of every script. */
export async function moduleCounts(): Promise<ModuleCount[]> {
  const scripts = [...Deno.readDirSync(`${ROOT}/scripts`)].map(({ name }) => name).sort();
  return await Promise.all(scripts.map(countModules));
}

async function countModules(script: string): Promise<ModuleCount> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", `scripts/${script}`],
    cwd: ROOT,
    stderr: "null",
  }).output();
  const info: Info = JSON.parse(new TextDecoder().decode(stdout));
  return { script, eager: reach(info, false), graph: reach(info, true) };
}

/** Modules that are reached from the root; imports of types alone are none. */
function reach({ roots, redirects, modules }: Info, dynamic: boolean): number {
  const dependencies = new Map(modules.map((module) => [module.specifier, module.dependencies]));
  const seen = new Set<string>();
  const queue = [...roots];
  for (let next = queue.pop(); next !== undefined; next = queue.pop()) {
    if (seen.has(next)) continue;
    seen.add(next);
    for (const { code, isDynamic = false } of dependencies.get(next) ?? []) {
      const specifier = code?.specifier;
      if (specifier === undefined || (isDynamic && !dynamic)) continue;
      queue.push(redirects[specifier] ?? specifier);
    }
  }
  return seen.size;
}
