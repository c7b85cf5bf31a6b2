'use strict'
// Finds the extension in the package of this platform, and has a driver load it.

const fs = require('node:fs')

/** The package of the platform, as package.json names it among its optional dependencies. */
function platform () {
  const name = `walrust-${process.platform}-${process.arch}`
  return process.platform === 'linux' && onMusl() ? `${name}-musl` : name
}

/** Whether this program is one of musl's: the loader that it names says so. (ELF of 64 bits: tools move that name anywhere in the file.) */
function onMusl () {
  const file = fs.openSync(process.execPath, 'r')
  const read = (at, length) => {
    const bytes = Buffer.alloc(length)
    fs.readSync(file, bytes, 0, length, at)
    return bytes
  }
  try {
    const head = read(0, 64)
    const [table, size, count] = [Number(head.readBigUInt64LE(32)), head.readUInt16LE(54), head.readUInt16LE(56)]
    for (let i = 0; i < count; i++) {
      const entry = read(table + i * size, size)
      if (entry.readUInt32LE(0) === 3) { // PT_INTERP
        return read(Number(entry.readBigUInt64LE(8)), Number(entry.readBigUInt64LE(32))).includes('/ld-musl-')
      }
    }
    return false
  } finally {
    fs.closeSync(file)
  }
}

/** The extension's file, as `loadExtension()` of any driver takes it. */
function getLoadablePath () {
  const name = platform()
  try {
    return require.resolve(`${name}/walrust.so`)
  } catch (e) {
    const has = Object.keys(require('./package.json').optionalDependencies)
    throw new Error(has.includes(name)
      ? `walrust: the package ${name} is not installed: install without --omit=optional, or \`npm install ${name}\``
      : `walrust: there is no package for ${process.platform} on ${process.arch} (${name}); there are ${has.join(', ')}`, { cause: e })
  }
}

/**
 * Loads walrust through a connection, for the life of the process: every connection that is opened from now on has it.
 * Of a driver whose calls are asynchronous (node-sqlite3) it gives a Promise.
 */
function load (db) {
  const connection = db?.$client ?? db // drizzle's is inside
  if (typeof connection?.loadExtension !== 'function') {
    throw new TypeError('walrust: load() takes a connection that has loadExtension(): better-sqlite3, node:sqlite, node-sqlite3, bun:sqlite, libsql')
  }
  const path = getLoadablePath()
  if (typeof connection.parallelize === 'function') { // node-sqlite3
    return new Promise((resolve, reject) => connection.loadExtension(path, e => e ? reject(e) : resolve()))
  }
  connection.loadExtension(path)
}

module.exports = { load, getLoadablePath }
