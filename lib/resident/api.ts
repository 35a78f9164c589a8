/**
 * The document openapi.json, which says what requests there are: the routes, their methods, and what
 * they take.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { HttpError } from "./http.ts";
import document from "./openapi.json" with { type: "json" };

/** One operation of the document. */
export interface Operation {
  readonly id: string;
  /** `"/v1/vms/{name}"`. */
  readonly path: string;
  /** The content types of its body; none if it has no body. */
  readonly types: readonly string[];
  readonly query: readonly { readonly name: string; readonly values: readonly string[] }[];
}

/** An operation, and what the path and the query of a request say. */
export interface Route {
  readonly operation: Operation;
  readonly params: Readonly<Record<string, string>>;
  readonly query: Readonly<Record<string, string>>;
}

interface OperationObject {
  readonly operationId: string;
  readonly parameters?: readonly {
    readonly name: string;
    readonly in: string;
    readonly schema: { readonly enum?: readonly string[] };
  }[];
  readonly requestBody?: { readonly content: Readonly<Record<string, { schema: unknown }>> };
}

const METHODS = ["get", "post", "put", "patch", "delete"] as const;

const PATHS = Object.entries(document.paths).map(([path, item]) => {
  const methods = new Map<string, Operation>();
  for (const method of METHODS) {
    const found = (item as Partial<Record<string, OperationObject>>)[method];
    if (found === undefined) continue;
    methods.set(method.toUpperCase(), {
      id: found.operationId,
      path,
      types: Object.keys(found.requestBody?.content ?? {}),
      query: (found.parameters ?? []).map(({ name, schema }) => ({
        name,
        values: schema.enum ?? [],
      })),
    });
  }
  const pattern = path.replaceAll(".", "\\.").replaceAll(/\{(\w+)\}/g, "(?<$1>[^/]+)");
  return { pattern: new RegExp(`^${pattern}$`), methods };
});

/** The document, as it is sent. */
export { document };

/** All operations. */
export function operations(): Operation[] {
  return PATHS.flatMap(({ methods }) => [...methods.values()]);
}

/**
 * Finds what a request is for.
 *
 * @throws {HttpError} 404 for an unknown path, 405 for a method that it does not have
 * @throws {InputError} for a query that the operation does not have
 */
export function route(method: string, url: string): Route {
  const { pathname, searchParams } = parseUrl(url);
  const found = PATHS.find(({ pattern }) => pattern.test(pathname));
  if (found === undefined) {
    throw new HttpError(404, `there is no ${pathname}`, { mend: "see GET /v1/openapi.json" });
  }
  const operation = found.methods.get(method);
  if (operation === undefined) {
    const allow = [...found.methods.keys()].join(", ");
    throw new HttpError(405, `${pathname} has no method ${method}`, {
      mend: `use ${allow}`,
      headers: { allow },
    });
  }
  const groups = Object.entries(found.pattern.exec(pathname)?.groups ?? {});
  return {
    operation,
    params: Object.fromEntries(groups.map(([name, value]) => [name, decode(value)])),
    query: readQuery(operation, searchParams),
  };
}

function parseUrl(url: string): URL {
  try {
    return new URL(url);
  } catch (cause) {
    throw new InputError("the request's URL or Host is malformed", { cause });
  }
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (cause) {
    throw new InputError(`"${text}" in the path is malformed`, { cause });
  }
}

function readQuery({ query }: Operation, params: URLSearchParams): Record<string, string> {
  for (const [name, value] of params) {
    const known = query.find((one) => one.name === name);
    if (known === undefined) {
      throw new InputError(`the query parameter "${name}" does not exist here`);
    }
    if (!known.values.includes(value)) {
      throw new InputError(`the query parameter "${name}" cannot be "${value}"`, {
        mend: `write ${known.values.filter((text) => text !== "").join(" or ")}`,
      });
    }
  }
  return Object.fromEntries(params);
}

/**
 * The content type of a request's body.
 *
 * @throws {HttpError} 415 when the operation does not take it
 */
export function bodyType({ types }: Operation, header: string | null): string {
  const type = header?.split(";", 1).at(0)?.trim().toLowerCase() ?? "";
  if (types.includes(type)) return type;
  throw new HttpError(415, `the body's content type is ${type === "" ? "absent" : `"${type}"`}`, {
    mend: `send ${types.join(" or ")}`,
    headers: { connection: "close" },
  });
}

/** Checks a body, or a line of one. Throws an InputError whose message begins with `where`. */
export type Validate = (
  operation: Operation,
  type: string,
  body: unknown,
  where: string,
) => void;

/** Loads what validates bodies by the document's schemas. */
export async function loadValidation(): Promise<Validate> {
  // In a bundle it is a file of its own, which has no other exports.
  const { default: { Ajv2020 } } = await import("ajv");
  const ajv = new Ajv2020({ allowUnionTypes: true });
  const text = JSON.stringify(document).replaceAll("#/components/schemas/", "api#/$defs/");
  const { components, paths } = JSON.parse(text);
  ajv.addSchema({ $id: "api", $defs: components.schemas });
  const compiled = new Map<string, ReturnType<typeof ajv.compile>>();
  for (const item of Object.values(paths)) {
    for (const method of METHODS) {
      const found = (item as Partial<Record<string, OperationObject>>)[method];
      for (const [type, { schema }] of Object.entries(found?.requestBody?.content ?? {})) {
        compiled.set(`${found!.operationId} ${type}`, ajv.compile(schema as object));
      }
    }
  }
  return ({ id }, type, body, where) => {
    const validate = compiled.get(`${id} ${type}`)!;
    if (validate(body)) return;
    const { instancePath = "", message = "", params = {} } = validate.errors?.[0] ?? {};
    const field = instancePath === "" ? "" : ` at ${instancePath}`;
    const extra = "additionalProperty" in params ? `: "${params.additionalProperty}"` : "";
    throw new InputError(`${where}${field} ${message}${extra}`, {
      mend: "see GET /v1/openapi.json",
    });
  };
}
