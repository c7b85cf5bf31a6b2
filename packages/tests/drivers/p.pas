program p;
{$mode objfpc}{$H+}
uses cthreads, SysUtils, ctypes, sqlite3;

function sqlite3_enable_load_extension(db: psqlite3; onoff: cint): cint; cdecl; external 'sqlite3';
function sqlite3_load_extension(db: psqlite3; path, entry: pansichar; e: ppansichar): cint; cdecl; external 'sqlite3';

var
  db: psqlite3;
  d, how: string;
  i: integer;

procedure run(const sql: string);
var
  e: pansichar;
begin
  e := nil;
  if sqlite3_exec(db, pansichar(sql), nil, nil, @e) <> SQLITE_OK then raise Exception.Create(e);
end;

begin
  d := ParamStr(2);
  how := ParamStr(3);
  if sqlite3_open(pansichar(d + '/app.db'), @db) <> SQLITE_OK then halt(4);
  sqlite3_enable_load_extension(db, 1);
  if sqlite3_load_extension(db, pansichar(ParamStr(1)), nil, nil) <> SQLITE_OK then halt(5);
  run('SELECT walrust_watch(' + QuotedStr(d + '/replica') + ')');
  run('CREATE TABLE t(id INTEGER PRIMARY KEY, v)');
  for i := 1 to 100 do run('INSERT INTO t(v) VALUES(' + IntToStr(i) + ')');
  run('SELECT walrust_sync()');
  run('SELECT walrust_restore(' + QuotedStr(d + '/replica') + ', ' + QuotedStr(d + '/copy.db') + ')');
  run('INSERT INTO t(v) VALUES(1)');
  if how = 'throw' then raise Exception.Create('nobody catches this');
  if how = 'close' then sqlite3_close(db);
end.
