#include <QtCore/QtCore>
#include <QtSql/QtSql>
#include <sqlite3.h>
#include <stdexcept>

static void run(QSqlDatabase &db, const char *sql, QVariantList values = {}) {
  QSqlQuery q(db);
  q.prepare(sql);
  for (const QVariant &v : values) q.addBindValue(v);
  if (!q.exec()) throw std::runtime_error(q.lastError().text().toStdString());
  q.next();
}

int main(int argc, char **argv) {
  QCoreApplication app(argc, argv);
  QString so = argv[1], d = argv[2], how = argv[3];
  {
    QSqlDatabase db = QSqlDatabase::addDatabase("QSQLITE");
    db.setDatabaseName(d + "/app.db");
    if (!db.open()) return 4;
    sqlite3_enable_load_extension(*(sqlite3 **)db.driver()->handle().data(), 1);
    run(db, "SELECT load_extension(?)", {so});
    run(db, "SELECT walrust_watch(?)", {d + "/replica"});
    run(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    for (int i = 0; i < 100; i++) run(db, "INSERT INTO t(v) VALUES(?)", {i});
    run(db, "SELECT walrust_sync()");
    run(db, "SELECT walrust_restore(?, ?)", {d + "/replica", d + "/copy.db"});
    run(db, "INSERT INTO t(v) VALUES('last')");
    if (how == "throw") throw std::runtime_error("nobody catches this");
    if (how == "exit") exit(0);
    db.close();
  }
  QSqlDatabase::removeDatabase("qt_sql_default_connection");
  return 0;
}
