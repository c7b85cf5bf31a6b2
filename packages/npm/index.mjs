import { createRequire } from 'node:module'

const walrust = createRequire(import.meta.url)('./index.cjs')

export const load = walrust.load
export const getLoadablePath = walrust.getLoadablePath
export default walrust
