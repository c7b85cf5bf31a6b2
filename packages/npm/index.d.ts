/** A connection of better-sqlite3, node:sqlite (`allowExtension: true`), bun:sqlite, libsql or a driver with the same call. */
export interface Loads { loadExtension(path: string): unknown }

/** A connection of node-sqlite3. */
export interface LoadsLater {
  loadExtension(path: string, callback?: (error: Error | null) => void): unknown
  parallelize(callback?: () => void): void
}

/** A drizzle database over one of these. */
export interface HasClient<T> { $client: T }

/**
 * Loads walrust through a connection, for the life of the process: every connection that is opened from now on has it.
 * Throws what the driver throws where it allows no extensions, and an Error where this platform has no package.
 */
export function load(db: LoadsLater | HasClient<LoadsLater>): Promise<void>
export function load(db: Loads | HasClient<Loads>): void

/** The extension's file, as `loadExtension()` of any driver takes it. Throws an Error where this platform has no package. */
export function getLoadablePath(): string
