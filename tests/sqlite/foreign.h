/*
** A VFS that is not one of SQLite's own, for the suite's run over one: it passes everything on, and knows its files by their
** table of methods, as ciphers do. A file whose table was exchanged, its own or the one of SQLite's file inside, ends the
** program with a line. Included by load_walrust.c, and by a library that the door tests build.
*/
typedef struct ForeignFile { sqlite3_file base; sqlite3_file *inner; } ForeignFile;

static sqlite3_vfs *foreignLower = 0;
static sqlite3_io_methods aForeign[4];       /* by version */

static void foreignHarm(const char *zWhat){
  fprintf(stderr, "foreign: the methods of %s were exchanged\n", zWhat);
  abort();
}
/* SQLite's tables are constants of its library; what somebody made stands on the heap. */
static int isConstant(const void *t){
  static const void *aKnown[16];
  Dl_info info;
  int i;
  for(i=0; i<16 && aKnown[i]; i++){
    if( aKnown[i]==t ) return 1;
  }
  if( dladdr(t, &info)==0 ) return 0;
  if( i<16 ) aKnown[i] = t;
  return 1;
}
static sqlite3_file *inner(sqlite3_file *f){
  if( f->pMethods<&aForeign[1] || f->pMethods>&aForeign[3] ) foreignHarm("a file of the VFS");
  if( !isConstant(((ForeignFile*)f)->inner->pMethods) ) foreignHarm("the file inside");
  return ((ForeignFile*)f)->inner;
}
static int fClose(sqlite3_file *f){
  sqlite3_file *i = inner(f);
  int rc = i->pMethods->xClose(i);
  f->pMethods = 0;
  return rc;
}
#define F(name, args, call) static int name args { sqlite3_file *i = inner(f); return i->pMethods->call; }
F(fRead, (sqlite3_file *f, void *z, int n, sqlite3_int64 o), xRead(i, z, n, o))
F(fWrite, (sqlite3_file *f, const void *z, int n, sqlite3_int64 o), xWrite(i, z, n, o))
F(fTruncate, (sqlite3_file *f, sqlite3_int64 n), xTruncate(i, n))
F(fSync, (sqlite3_file *f, int n), xSync(i, n))
F(fFileSize, (sqlite3_file *f, sqlite3_int64 *n), xFileSize(i, n))
F(fLock, (sqlite3_file *f, int n), xLock(i, n))
F(fUnlock, (sqlite3_file *f, int n), xUnlock(i, n))
F(fReserved, (sqlite3_file *f, int *n), xCheckReservedLock(i, n))
F(fControl, (sqlite3_file *f, int op, void *p), xFileControl(i, op, p))
F(fSector, (sqlite3_file *f), xSectorSize(i))
F(fDevice, (sqlite3_file *f), xDeviceCharacteristics(i))
F(fShmMap, (sqlite3_file *f, int r, int n, int x, void volatile **p), xShmMap(i, r, n, x, p))
F(fShmLock, (sqlite3_file *f, int o, int n, int x), xShmLock(i, o, n, x))
F(fShmUnmap, (sqlite3_file *f, int d), xShmUnmap(i, d))
F(fFetch, (sqlite3_file *f, sqlite3_int64 o, int n, void **p), xFetch(i, o, n, p))
F(fUnfetch, (sqlite3_file *f, sqlite3_int64 o, void *p), xUnfetch(i, o, p))
static void fShmBarrier(sqlite3_file *f){ sqlite3_file *i = inner(f); i->pMethods->xShmBarrier(i); }
#undef F

static int fOpen(sqlite3_vfs *v, const char *z, sqlite3_file *f, int flags, int *out){
  ForeignFile *p = (ForeignFile*)f;
  int rc;
  (void)v;
  p->base.pMethods = 0;
  p->inner = (sqlite3_file*)&p[1];
  rc = foreignLower->xOpen(foreignLower, z, p->inner, flags, out);
  if( p->inner->pMethods ){
    int version = p->inner->pMethods->iVersion;
    p->base.pMethods = &aForeign[version<1 ? 1 : version>3 ? 3 : version];
  }
  return rc;
}
#define V(name, args, call) static int name args { (void)v; return foreignLower->call; }
V(fDelete, (sqlite3_vfs *v, const char *z, int s), xDelete(foreignLower, z, s))
V(fAccess, (sqlite3_vfs *v, const char *z, int x, int *r), xAccess(foreignLower, z, x, r))
V(fFull, (sqlite3_vfs *v, const char *z, int n, char *o), xFullPathname(foreignLower, z, n, o))
V(fRandom, (sqlite3_vfs *v, int n, char *o), xRandomness(foreignLower, n, o))
V(fSleep, (sqlite3_vfs *v, int n), xSleep(foreignLower, n))
V(fTime, (sqlite3_vfs *v, double *o), xCurrentTime(foreignLower, o))
V(fError, (sqlite3_vfs *v, int n, char *o), xGetLastError(foreignLower, n, o))
V(fTime64, (sqlite3_vfs *v, sqlite3_int64 *o), xCurrentTimeInt64(foreignLower, o))
#undef V
static void *fDlOpen(sqlite3_vfs *v, const char *z){ (void)v; return foreignLower->xDlOpen(foreignLower, z); }
static void fDlError(sqlite3_vfs *v, int n, char *z){ (void)v; foreignLower->xDlError(foreignLower, n, z); }
static void (*fDlSym(sqlite3_vfs *v, void *p, const char *z))(void){ (void)v; return foreignLower->xDlSym(foreignLower, p, z); }
static void fDlClose(sqlite3_vfs *v, void *p){ (void)v; foreignLower->xDlClose(foreignLower, p); }
static int fSet(sqlite3_vfs *v, const char *z, sqlite3_syscall_ptr p){ (void)v; return foreignLower->xSetSystemCall(foreignLower, z, p); }
static sqlite3_syscall_ptr fGet(sqlite3_vfs *v, const char *z){ (void)v; return foreignLower->xGetSystemCall(foreignLower, z); }
static const char *fNext(sqlite3_vfs *v, const char *z){ (void)v; return foreignLower->xNextSystemCall(foreignLower, z); }

static sqlite3_vfs foreign = {
  3, 0, 0, 0, "foreign", 0, fOpen, fDelete, fAccess, fFull, fDlOpen, fDlError, fDlSym, fDlClose, fRandom, fSleep, fTime, fError,
  fTime64, fSet, fGet, fNext
};

/* The default from now on. */
static int foreignRegister(void){
  static const sqlite3_io_methods all = {
    3, fClose, fRead, fWrite, fTruncate, fSync, fFileSize, fLock, fUnlock, fReserved, fControl, fSector, fDevice,
    fShmMap, fShmLock, fShmBarrier, fShmUnmap, fFetch, fUnfetch
  };
  int i;
  if( foreignLower==0 ){
    foreignLower = sqlite3_vfs_find(0);
    foreign.szOsFile = (int)sizeof(ForeignFile) + foreignLower->szOsFile;
    foreign.mxPathname = foreignLower->mxPathname;
    for(i=1; i<=3; i++){ aForeign[i] = all; aForeign[i].iVersion = i; }
  }
  return sqlite3_vfs_register(&foreign, 1);
}
